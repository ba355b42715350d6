"""Receptive-field convolutions beside PyTorch's convolution and beside what one writes by hand."""
