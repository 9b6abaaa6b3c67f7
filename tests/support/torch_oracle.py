"""The same training by PyTorch and PEFT, row by row in float32; a script for a Python that has them, and not ours.

Takes from the job what was given to both: base, ids, masks, batches, adapters at the start and at some steps. Names,
scaling, loss, schedule, clipping and optimizer are its own, or PyTorch's. See `test_torch_oracle.py`.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main(directory):
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    model = make_model(job)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    at = {}
    for number in job["at"]:
        set_adapters(trained, directory / f"{number}.npz")
        loss = backward(model, job["steps"][number - 1])
        at[number] = [loss, norm_of(trained.values())]
        model.zero_grad()
    set_adapters(trained, directory / "1.npz")
    (directory / "found.json").write_text(json.dumps({"at": at, "trained": train(model, trained, job)}))


def make_model(job):
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    lora = LoraConfig(
        r=job["rank"],
        lora_alpha=job["alpha"],
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_dora=job["adapter"] == "dora",
        use_rslora=job["rslora"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora).train()


def set_adapters(trained, path):
    """Numbers of a file: module and `lora_a`, `lora_b` (both transposed) or `m`."""
    leaves = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
    with np.load(path) as file, torch.no_grad():
        names = set()
        for name in file.files:
            module, _, leaf = name.rpartition(".")
            own = f"base_model.model.{module}.{leaves.get(leaf, 'lora_magnitude_vector.default.weight')}"
            trained[own].copy_(torch.from_numpy(file[name].T.copy()))
            names.add(own)
        assert names == trained.keys(), names ^ trained.keys()


def backward(model, rows):
    """Mean loss over the trained tokens of some rows; its gradient is left in the parameters."""
    targets = sum(sum(mask) for _, mask in rows)
    total = 0.0
    for ids, mask in rows:
        ids = torch.tensor([ids])
        places = torch.tensor(mask).nonzero()[:, 0]
        logits = model(input_ids=ids, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[places - 1], ids[0, places], reduction="sum")
        (loss / targets).backward()
        total += loss.item()
    return total / targets


def norm_of(parameters):
    return math.sqrt(sum(value.grad.double().square().sum().item() for value in parameters))


def train(model, trained, job):
    """Losses and gradient norms of the first steps."""
    groups = [
        {"params": [value for name, value in trained.items() if ("lora_B" in name) == is_b], "times": times}
        for is_b, times in ((False, 1.0), (True, job["lora_plus"]))
    ]
    decay = {"weight_decay": job["weight_decay"]} if job["optimizer"] == "adamw" else {}
    kind = torch.optim.AdamW if job["optimizer"] == "adamw" else torch.optim.Adam
    optimizer, found = kind(groups, lr=job["learning_rate"], **decay), []
    for number, rows in enumerate(job["steps"][: job["train"]], 1):
        loss = backward(model, rows)
        found.append([loss, norm_of(trained.values())])
        if job["max_grad_norm"]:
            torch.nn.utils.clip_grad_norm_(trained.values(), job["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = rate(number, job) * group["times"]
        optimizer.step()
        optimizer.zero_grad()
    return found


def rate(number, job):
    if number <= job["warmup_steps"]:
        return job["learning_rate"] * number / job["warmup_steps"]
    done = (number - job["warmup_steps"]) / (job["total"] - job["warmup_steps"] + 1)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return job["learning_rate"] * fall[job["schedule"]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
