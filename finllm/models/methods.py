"""What is known of each of peft's methods: its paper, what it trains, defaults that suit, and where it has limits.

Only what no proof can find out stands here; whether a method runs on a model, starts as it, trains and merges is proved
on the model at hand (finllm.models.method_proofs). A type of peft that this table does not name is taken as it comes.

r rank, in and out the sides of a layer, C model width, P virtual tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LINEAR = {"target_modules": "all-linear"}
BENCHMARK = "peft's method_comparison, July 2026"
# Fields that say what an adapter is, where it lies, or how other programs run it: not a person's to set.
OWN = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "megatron_config", "megatron_core", "runtime_config",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One of peft's types. `rates` is where to begin looking for a learning rate, and `source` who found it."""

    title: str
    trains: str  # numbers that train, a layer where nothing else is said
    paper: str
    rates: tuple[float, float] | None
    source: str = BENCHMARK
    settings: Mapping[str, Any] = field(default_factory=dict)  # where peft's own default is missing or does not suit
    starts_elsewhere: str = ""  # why the adapted model does not begin as the base model
    silent: str = ""  # tensors, by a regular expression, that may have no gradient
    silent_because: str = ""
    float32_base: bool = False  # it rewrites the weights under it, or its own numbers stand among theirs uncast
    one_task: bool = False  # it asks for a task's number with every batch; here all rows are of one task
    refused: str = ""


PROMPT = "virtual tokens stand before every text from the first step on"
NOT_TEXT = "nobody reports one for text"

METHODS = {
    "LORA": Method("LoRA", "r(in + out)", "arXiv 2106.09685", (1e-4, 1e-3), "Thinking Machines 2025; " + BENCHMARK,
                   {**LINEAR, "r": 16, "lora_alpha": 32}),
    "ADALORA": Method("AdaLoRA", "init_r(in + out + 1)", "arXiv 2303.10512", (1e-4, 1e-3), settings=LINEAR),
    "ADAMSS": Method("AdaMSS", "by subspaces", "peft's docs", (1e-4, 1e-2), settings=LINEAR, float32_base=True),
    "ADAPTION_PROMPT": Method(
        "LLaMA-Adapter", "P · C + 1 of each of the last layers", "arXiv 2303.16199", (5e-4, 5e-3),
        settings={"adapter_len": 10}, float32_base=True),
    "BEFT": Method("BEFT", "out", "arXiv 2509.15974", (1e-4, 1e-3), settings=LINEAR),
    "BOFT": Method("BOFT", "factors · block · in + out", "arXiv 2311.06243", (1e-4, 1e-3), settings=LINEAR),
    "C3A": Method("C3A", "in · out / block", "arXiv 2407.19342", (1e-1, 3e-1),
                  settings={**LINEAR, "init_weights": True}),
    "CARTRIDGE": Method("Cartridge", "2 · P · layers · width of the keys", "arXiv 2506.06266", (1e-3, 1e-2),
                        "as prefix tuning", {"num_virtual_tokens": 20}, PROMPT),
    "CPT": Method("CPT", "P · C", "arXiv 2410.17222", (1e-4, 1e-3), "peft's example", {"cpt_token_ids": None}, PROMPT),
    "DEFT": Method("DEFT", "r(in + out)", "peft's docs", (1e-4, 3e-4), settings=LINEAR, float32_base=True),
    "DELORA": Method("DeLoRA", "r(in + out) + 1", "arXiv 2503.18225", (1e-3, 1e-2), settings=LINEAR),
    "FOURIERFT": Method("FourierFT", "n_frequency", "arXiv 2405.03003", (1e-3, 1e-1),
                        "its paper; peft's benchmark did not tune it", {**LINEAR, "init_weights": True}),
    "FROD": Method("FRoD", "min(in, out) and a sparse share of its square", "doi 10.1609/aaai.v40i31.39813",
                   (1e-4, 2e-2), settings={**LINEAR, "progressbar": False}, float32_base=True),
    "GLORA": Method("GLoRA", "up to 2r(in + out) and vectors", "arXiv 2306.07967", (1e-4, 3e-4), settings=LINEAR,
                    silent=r"glora_[DE]",
                    silent_because="D multiplies the bias, which may be zero, and LayerNorm takes out what E adds"),
    "GRALORA": Method("GraLoRA", "r(in + out)", "arXiv 2505.20355", (1e-4, 3e-4), settings=LINEAR),
    "HIRA": Method("HiRA", "r(in + out)", "ICLR 2025, openreview TwJrTz9cRS", (3e-4, 4.5e-3), settings=LINEAR),
    "HRA": Method("HRA", "r · in", "arXiv 2405.17484", (1e-4, 1e-3), NOT_TEXT, LINEAR),
    "IA3": Method("IA³", "out, or in of `feedforward_modules`", "arXiv 2205.05638", (1e-3, 5e-3),
                  settings={**LINEAR, "feedforward_modules": []}),
    "LILY": Method("Lily", "shared A, a few B, a router", "arXiv 2407.09946", (1e-4, 1e-3), settings=LINEAR,
                   refused="its router takes the mean over all tokens of all rows of a batch (peft 0.21, "
                           "lily/layer.py), so a prediction moves with later tokens and with other rows"),
    "LN_TUNING": Method("LayerNorm tuning", "the norms", "arXiv 2312.11420", (1e-3, 1e-2),
                        "its paper; peft's benchmark did not tune it", float32_base=True),
    "LOHA": Method("LoHa", "2r(in + out)", "arXiv 2108.06098", (1e-4, 1e-3), settings=LINEAR),
    "LOKR": Method("LoKr", "Kronecker factors", "arXiv 2309.14859", (1e-3, 3e-3), settings=LINEAR),
    "MISS": Method("MiSS", "r · out", "arXiv 2409.15371", (2e-5, 1e-4), settings=LINEAR),
    "MULTITASK_PROMPT_TUNING": Method(
        "Multitask prompt tuning", "P · C + tasks · ranks · (P + C)", "arXiv 2303.02861", (1e-3, 1e-1),
        "as prompt tuning", {"num_virtual_tokens": 20}, PROMPT, one_task=True),
    "OFT": Method("OFT", "in(block − 1) / 2", "arXiv 2306.07280", (1e-4, 1e-3), settings=LINEAR),
    "OSF": Method("OSF", "the low part of the singular values and vectors", "arXiv 2504.07097", (1e-5, 1e-4),
                  settings=LINEAR, float32_base=True),
    "PEANUT": Method("PEANuT", "2r · out", "arXiv 2410.01870", (1e-4, 1e-3), settings=LINEAR),
    "POLY": Method("Poly", "skills · LoRA, and a router", "arXiv 2202.13914", (1e-4, 1e-3), NOT_TEXT, LINEAR,
                   one_task=True),
    "PREFIX_TUNING": Method("Prefix tuning", "2 · P · layers · width of the keys", "arXiv 2101.00190", (1e-3, 1e-2),
                            settings={"num_virtual_tokens": 20}, starts_elsewhere=PROMPT),
    "PROMPT_TUNING": Method("Prompt tuning", "P · C", "arXiv 2104.08691", (1e-3, 1e-1),
                            settings={"num_virtual_tokens": 20}, starts_elsewhere=PROMPT),
    "PSOFT": Method("PSOFT", "r(r − 1) / 2 + 2r", "peft's docs", (1e-4, 5e-3), settings=LINEAR, float32_base=True),
    "PVERA": Method("PVeRA", "2r + out", "arXiv 2512.07703", (1e-3, 3e-3), settings=LINEAR),
    "P_TUNING": Method("P-tuning", "P · C and a network that is not saved", "arXiv 2103.10385", (1e-4, 1e-3),
                       settings={"num_virtual_tokens": 20}, starts_elsewhere=PROMPT),
    "RANDLORA": Method("RandLoRA", "r · (in / r + 1) or so", "arXiv 2502.00987", (1e-4, 3e-4), settings=LINEAR),
    "ROAD": Method("RoAd", "out", "arXiv 2409.00119", (1e-3, 1e-2), settings=LINEAR),
    "SHADOW": Method("ShadowPEFT", "a small model beside the base", "peft's docs", (1e-4, 1e-3), NOT_TEXT,
                     refused="peft 0.21 keeps the states of one batch for the next, and fails where that has another "
                             "length and the adapter is off"),
    "SHIRA": Method("SHiRA", "r(in + out) single entries", "arXiv 2406.13175", (3e-4, 3e-3),
                    settings={**LINEAR, "random_seed": 0}),
    "SUPERTUNING": Method("SuperTuning", "1 % of the entries", "arXiv 2607.09287", (1e-4, 1e-3), settings=LINEAR),
    "TINYLORA": Method("TinyLoRA", "u", "arXiv 2602.04118", (1e-3, 1e-1), "its paper", LINEAR),
    "TRAINABLE_TOKENS": Method(
        "Trainable tokens", "tokens · C", "peft's docs", (1e-2, 2e-1),
        refused="it adapts the embedding, and with it a tied head, which TRL's loss goes past; where the head is not "
                "tied, give trainable_token_indices to LoRA"),
    "UNILORA": Method("UniLoRA", "theta_d_length in all", "arXiv 2506.00799", (1e-3, 1e-2), settings=LINEAR,
                      starts_elsewhere="its vector begins with small random numbers"),
    "VBLORA": Method("VB-LoRA", "a bank of vectors, and logits of each layer", "arXiv 2405.15179", (1e-3, 1e-2),
                     settings=LINEAR, silent=r"vblora_logits",
                     silent_because="gradients of logits are near 0 while the bank is small",
                     starts_elsewhere="its bank begins with small random numbers"),
    "VERA": Method("VeRA", "r + out", "arXiv 2310.11454", (1e-3, 1e-2), settings=LINEAR),
    "WAVEFT": Method("WaveFT", "n_frequency", "arXiv 2505.12532", (1e-4, 3e-4), settings=LINEAR),
    "XLORA": Method("X-LoRA", "a gate over saved LoRAs", "arXiv 2402.07148", None, NOT_TEXT,
                    refused="it mixes LoRAs that were trained before, and peft 0.21 builds it on none of GPT-2 and "
                            "Llama; train a LoRA"),
}  # fmt: skip


def usual_rate(kind: str) -> float | None:
    """A learning rate to begin with: the geometric middle of the method's range; None of an unknown one."""
    rates = known_method(kind).rates
    return None if rates is None else float(f"{math.sqrt(rates[0] * rates[1]):.0e}")


def known_method(kind: str) -> Method:
    """What is known of one of peft's types, in capitals; nothing of one that is newer than this table."""
    return METHODS.get(kind, Method(kind, "", "peft's docs", None))
