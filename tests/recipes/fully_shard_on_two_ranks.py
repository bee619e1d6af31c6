"""FSDP2 on two gloo ranks: a step of a sharded GPT-2 against the same step of a whole one, and its checkpoints.

torchrun --nproc-per-node 2 tests/recipes/fully_shard_on_two_ranks.py GPT2_DIR OUTPUT_DIR
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def main(source: str, output: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    ids_BT = torch.randint(0, 600, (4, 32), generator=torch.Generator().manual_seed(0))

    whole = load(source)
    loss = step(whole, ids_BT)
    sharded = shard(load(source))
    part = step(sharded, ids_BT[2 * rank : 2 * rank + 2])  # gradients are averaged over ranks, as the whole loss is
    dist.all_reduce(part)

    expected, found = whole.state_dict(), get_model_state_dict(sharded, options=WHOLE)
    dcp.save(sharded.state_dict(), checkpoint_id=output / "checkpoint")
    other = shard(load(source))
    dcp.load(other.state_dict(), checkpoint_id=output / "checkpoint")
    reloaded = get_model_state_dict(other, options=WHOLE)
    if rank == 0:
        load(source).save_pretrained(output / "model", state_dict=found)
        consolidated = load(output / "model").state_dict()
        parameters = list(sharded.parameters())
        result = {
            "sharded": all(isinstance(parameter, DTensor) for parameter in parameters),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "parameters_a_rank": sum(parameter.to_local().numel() for parameter in parameters),
            "loss_apart": abs(float(part) / 2 - float(loss)) / float(loss),
            "weights_apart": apart(found, expected),
            "reloaded_apart": apart(reloaded, found),
            "consolidated_apart": apart(consolidated, found),
        }
        (output / "found.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def load(source):
    return AutoModelForCausalLM.from_pretrained(source, dtype="float32").train()


def shard(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def step(model, ids_BT):
    """One step of plain gradient descent, in which rounding stays as small as it is."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return loss.detach()


def apart(found, expected):
    return max(
        float(torch.dist(found[name], tensor) / tensor.norm().clamp(min=1e-6)) for name, tensor in expected.items()
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
