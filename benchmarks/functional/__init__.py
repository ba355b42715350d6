"""Functional autograd beside hand-written `torch.autograd`, `torch.func`, `make_fx` and `torch.compile`."""
