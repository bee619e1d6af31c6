"""The files of recipes/accelerate, read by accelerate's own classes: an unknown key fails here, not on a GPU."""

import dataclasses
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
EXPECTED = {  # distributed_type, machines, processes
    "accelerate_config.yaml": (DistributedType.NO, 1, 1),
    "recipes/accelerate/cpu.yaml": (DistributedType.NO, 1, 1),
    "recipes/accelerate/ddp.yaml": (DistributedType.MULTI_GPU, 1, 8),
    "recipes/accelerate/fsdp2.yaml": (DistributedType.FSDP, 1, 8),
    "recipes/accelerate/zero2.yaml": (DistributedType.DEEPSPEED, 1, 8),
    "recipes/accelerate/zero3.yaml": (DistributedType.DEEPSPEED, 1, 8),
    "recipes/accelerate/multinode.yaml": (DistributedType.MULTI_GPU, 2, 16),
}
# Fields that `accelerate launch` has under another name than the plugin
NAMED_OTHERWISE = {"offload_params": "cpu_offload"}


def unknown_fsdp_keys(section: dict) -> set[str]:
    fields = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    names = {key.removeprefix("fsdp_") if key != "fsdp_version" else key for key in section}
    return {name for name in names if NAMED_OTHERWISE.get(name, name) not in fields}


def unknown_deepspeed_keys(section: dict) -> set[str]:
    return set(section) - {field.name for field in dataclasses.fields(DeepSpeedPlugin)}


def test_every_file_is_expected():
    assert {f"recipes/accelerate/{path.name}" for path in FOLDER.glob("*.yaml")} == EXPECTED.keys() - {
        "accelerate_config.yaml"
    }


@pytest.mark.parametrize("path", EXPECTED)
def test_accelerate_reads_it_and_knows_every_key(path):
    config = load_config_from_file(str(ROOT / path))  # raises on an unknown key at the top
    assert (config.distributed_type, config.num_machines, config.num_processes) == EXPECTED[path]
    assert unknown_fsdp_keys(config.fsdp_config) == set()
    assert unknown_deepspeed_keys(config.deepspeed_config) == set()
    first = (ROOT / path).read_text().splitlines()[0]
    assert first.startswith("# ") and path.replace("multinode.yaml", "multinode.sbatch") in first
    # Flags of the same names exist: `accelerate launch` copies the sections onto its arguments.
    flags = vars(launch_command_parser().parse_args(["script.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= flags.keys()


def test_a_misspelt_key_is_seen(tmp_path):
    assert unknown_fsdp_keys({"fsdp_reshard_after_foward": True}) == {"reshard_after_foward"}
    assert unknown_deepspeed_keys({"zero_stages": 3}) == {"zero_stages"}
    content = yaml.safe_load((FOLDER / "ddp.yaml").read_text())
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**content, "num_proceses": 2}))
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(tmp_path / "wrong.yaml"))


def test_fsdp_is_version_2_and_saves_a_full_state_dict():
    section = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=section["fsdp_version"],
        reshard_after_forward=section["fsdp_reshard_after_forward"],
        auto_wrap_policy=section["fsdp_auto_wrap_policy"],
        state_dict_type=section["fsdp_state_dict_type"],
    )
    assert plugin.fsdp_version == 2
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)  # else transformers saves no model


@pytest.mark.parametrize("stage", [2, 3])
def test_the_zero_stage_and_the_recipes_own_accumulation_and_clipping(stage):
    section = load_config_from_file(str(FOLDER / f"zero{stage}.yaml")).deepspeed_config
    assert section["zero_stage"] == stage
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & section.keys()
    assert section.get("zero3_save_16bit_model", False) is (stage == 3)  # else stage 3 leaves no safetensors


def test_cpu_says_how_two_processes_start():
    assert "torchrun --nproc-per-node 2 recipes/sft.py" in (FOLDER / "cpu.yaml").read_text()
    assert load_config_from_file(str(FOLDER / "cpu.yaml")).use_cpu


def test_the_slurm_script_is_bash_and_launches_with_the_config():
    script = FOLDER / "multinode.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert "accelerate launch --config_file recipes/accelerate/multinode.yaml" in "\n".join(lines)
    assert "#SBATCH --nodes=2" in script.read_text() and "#SBATCH --ntasks-per-node=1" in script.read_text()
