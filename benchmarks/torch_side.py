"""What the comparisons with PyTorch share."""

import os
from typing import Any


def use_all_cores() -> None:
    """All cores that this process may run on; PyTorch takes fewer by itself."""
    import torch  # pyright: ignore[reportMissingImports]

    fewer = hasattr(os, "sched_getaffinity")
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if fewer else os.cpu_count() or 1
    )


def adamw(model: Any, optim: dict[str, Any]) -> Any:
    """PyTorch's, with the settings of a config; no decay of biases and LayerNorm."""
    import torch  # pyright: ignore[reportMissingImports]

    decayed: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        bare = name.endswith("bias") or "LayerNorm" in name
        decayed[not bare].append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed[False], "weight_decay": 0.0}, {"params": decayed[True]}],
        lr=optim["peak_rate"],
        betas=(optim["beta1"], optim["beta2"]),
        eps=optim["epsilon"],
        weight_decay=optim["weight_decay"],
        fused=True,
    )
