"""Every public quantity on one device and in four precisions, beside float64 on the CPU (HESSE_TEST_DEVICE=cuda or cpu)."""
