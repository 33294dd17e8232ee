"""Where the time of a step goes, by kind of operation (torch.profiler)."""

import re
from typing import Any

from torch.profiler import ProfilerActivity, profile

# By the first pattern that the name of an operation matches.
KINDS = {
    "attention": r"scaled_dot_product|flash_attention",
    "matrix products": r"::(addmm|mm|bmm|baddbmm|matmul|linear|mkldnn_linear|_linear_pointwise|_mkl_linear|einsum)",
    "optimiser and clipping": r"adam|Optimizer|_foreach|clip_grad|linalg_vector_norm",
    "softmax, logits, drawing": r"softmax|logsumexp|multinomial|exponential|nll_loss|cross_entropy|::exp_?$|amax"
    r"|_Logprobs|cumsum|searchsorted|argmax|::sort|xlogy|gather|scatter|masked_fill|::where|isin",
    "copies": r"::(copy_|cat|clone|contiguous|_to_copy|to|index|index_select|index_copy_|index_put_|embedding"
    r"|embedding_dense_backward|fill_|zero_|zeros|zeros_like|new_zeros|empty|empty_like|empty_strided|repeat|expand|stack"
    r"|reshape|view|transpose|t|slice|select|split|narrow|as_strided|permute|unsqueeze|squeeze)$|_Spread|_Gather",
    "element-wise": r"^aten::",
}
REST = "Python and dispatch"


def kind_of(name: str) -> str:
    """The kind of an operation such as aten::addmm or autograd's name of a function."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), REST)


class Operations:
    """Records operations between `start` and `stop`."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU], acc_events=True)

    def start(self) -> None:
        """Begin to record."""
        self.profile.start()

    def stop(self) -> None:
        """Record no more."""
        self.profile.stop()

    def shares(self, seconds: float) -> dict[str, float]:
        """The share of each kind in the `seconds` between start and stop; see `shares`."""
        return shares([(event.key, event.self_cpu_time_total / 1e6) for event in self.profile.key_averages()], seconds)


def shares(events: list[tuple[str, Any]], seconds: float) -> dict[str, float]:
    """The share of each kind in `seconds`, from the names of operations and the seconds that are their own.

    What no operation accounts for is Python and dispatch, including autograd's bookkeeping and the profiler's own work.
    """
    found = dict.fromkeys((*KINDS, REST), 0.0)
    for name, own in events:
        found[kind_of(name)] += own
    found[REST] = max(0.0, seconds - sum(value for kind, value in found.items() if kind != REST))
    whole = sum(found.values())
    return {kind: value / whole for kind, value in found.items()}
