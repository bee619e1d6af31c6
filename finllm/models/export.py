"""`finllm export RUN --format gguf`: a run as one file for llama.cpp and Ollama, proved, with a Modelfile beside it."""

from __future__ import annotations

from pathlib import Path

from finllm.files import atomic_folder, put_in_place, write_text
from finllm.models import gguf_proofs, llama_cpp
from finllm.models.gguf_file import check_config, context_of, write_gguf
from finllm.models.ollama import modelfile
from finllm.models.plain import plain_model, refuse_filled, write_record
from finllm.terminal import say


def export_run(
    name: str, output_dir: Path | None, dtype: str, into: str | None, max_shift: float, dataset_name: str | None,
    max_examples: int, with_modelfile: bool,
) -> None:  # fmt: skip
    """Write the model of a run as a GGUF file into a new folder; a `UserError` leaves nothing."""
    if output_dir is None:
        output_dir = Path(f"{Path(name)}_{dtype}_gguf")
    refuse_filled(output_dir)
    plain = plain_model(name, into, dataset_name, max_examples, lambda kind, config: check_config(config, kind))
    proofs = [plain.proof(plain.held.nll(plain.model), max_shift)]
    plain.model.to("cpu")
    run, place = plain.run.path.resolve().name, output_dir.resolve()
    file = f"{run}-{dtype}.gguf"
    with atomic_folder(place) as work:
        path = work / file
        write_gguf(path, plain.model, plain.tokenizer, plain.template, run, dtype)
        prove = gguf_proofs.by_llama_cpp if llama_cpp.AVAILABLE else gguf_proofs.by_reading_back
        proofs += prove(path, plain, dtype)
        if with_modelfile:
            context = context_of(plain.model.config)
            write_text(work / "Modelfile", modelfile(plain.template, file, context))
        write_record(plain, work, {"format": "gguf", "dtype": dtype, "into": plain.into}, proofs)
        put_in_place(work, place)
    say(f"{output_dir / file}: {(output_dir / file).stat().st_size / 1e6:,.1f} MB")
    for proof in proofs:
        say(f"- {proof.said}")
    if not llama_cpp.AVAILABLE:
        say("llama.cpp itself was not asked, since xllamacpp is not installed: pip install 'finllm[llama_cpp]'")
    if with_modelfile:
        say(f"Next: ollama create {run} -f {output_dir}/Modelfile")
