"""What the rows and columns of the tables are called; nothing here computes."""

from __future__ import annotations

MICRO_ROWS = {
    "mlp": "MLP, value and gradient",
    "product": "MLP, Hessian product",
    "per_sample": "MLP, per-sample gradients",
    "hessian": "MLP, Hessian by its input",
    "laplacian": "Laplacian's parameter gradient",
    "lstm": "LSTM of 20 steps, value and gradient",
}
STEP_ROWS = {
    f"{name}_{size}": f"{title}, {'one sample' if size == 'single' else 'batch'}"
    for name, title in {
        "logistic": "logistic",
        "mlp": "MLP",
        "automodule": "MLP of auto-modules",
        "cnn": "CNN",
        "lstm": "LSTM",
    }.items()
    for size in ("single", "batched")
}
TITLES = MICRO_ROWS | STEP_ROWS | {"first": "gradient", "second": "gradient of the gradient"}

HESSE = {"direct": "hesse direct", "replay": "hesse replay", "native": "hesse native"}
COLUMNS = {
    "micro": {
        "func": "torch.func",
        "hand": "autograd.grad",
        "traced": "make_fx graph",
        "compile": "torch.compile",
        "unguarded": "inductor, no guards",
        **HESSE,
    },
    "steps": {
        "hand": "by hand",
        "compile": "torch.compile of the loss",
        "compile_step": "torch.compile of the step",
        **HESSE,
        "native_step": "hesse native, whole step",
    },
    "suite": {"replay": "hesse replay", "native": "hesse native", "compile": "torch.compile"},
}
OUTCOMES = {
    "right": "right",
    "partly": "right, but runs directly or in pieces",
    "refused": "refused with a reason",
    "failed": "fails",
    "wrong": "silently wrong",
}
