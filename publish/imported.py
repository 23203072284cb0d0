"""The model card's section on weights imported from a 4-bit checkpoint, with the figures published for such weights."""

from __future__ import annotations

from omni.imported import IMPORT
from publish.evidence import Evidence

__all__ = ["imported_section"]

# Word error rates on Seed-TTS test-hard of the 7B by the Thinker's format, from the three repositories' model cards.
_PUBLISHED_WER = {"AWQ": 8.88, "GPTQ-Int4": 10.3, "bfloat16": 8.7}


def imported_section(evidence: Evidence) -> str:
    """Return the section on imported 4-bit weights; "" if none are imported."""
    if IMPORT not in evidence.schemes:
        return ""
    rates = ", ".join(f"{rate:g} {name}" for name, rate in _PUBLISHED_WER.items())
    return f"""## Imported 4-bit weights

The 4-bit codes, zero points and scales are those of the checkpoint that this was made from, bit for bit: nothing was \
rounded again. Accuracy as the Qwen team published it for Qwen2.5-Omni-7B, whose 4-bit forms are Qwen2.5-Omni-7B-AWQ \
and -GPTQ-Int4: Seed-TTS test-hard WER {rates}. Those figures belong to these formats' weights in their own kernels, \
which multiply by floating-point activations. `MatMulNBits` at accuracy level 4 also quantizes activations, to 8 bits \
by the block, which they do not include: the measurements below are of that, against the same weights dequantized."""
