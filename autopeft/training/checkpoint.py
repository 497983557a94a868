"""A checkpoint: a state of training as files, safetensors and JSON; read with distrust.

`state.safetensors` holds the tensors, torch's generators and the loss of every step, `state.json` everything else, the
hash of the tensors and a digest of itself. Whatever is not as it was written is refused; the trial then begins anew,
which gives the same result later.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from autopeft.errors import StudyError
from autopeft.job import Job
from autopeft.training.random_states import RandomStates
from autopeft.training.schedule import Schedule
from autopeft.training.state import State
from autopeft.trial import Cost
from autopeft.untrusted import parse_json
from autopeft.version import __version__

STATE: Final = "state.json"
TENSORS: Final = "state.safetensors"
LOSSES: Final = "losses"
FORMAT: Final = 2
"""Version of the layout; a reader takes no other."""

_LARGEST_STATE: Final = 4 << 20
_LARGEST_HEADER: Final = 32 << 20
_CURE: Final = "begin the trial anew"


def identity_of(job: Job) -> dict[str, Any]:
    """Returns what a checkpoint is bound to, JSON-able: another value of any of it would give another result.

    A run that is promoted to a larger budget keeps all of it but "budget"; see `State` on the schedule. It begins from
    what its parent handed over (`autopeft.job.Start`), which is bound to the parent's budget.
    """
    setting = json.dumps(job.setting.to_dict(), sort_keys=True)
    return {
        "configuration": job.configuration.id,
        "seed": job.seed,
        "budget": job.budget.to_dict(),
        "setting": hashlib.sha256(setting.encode()).hexdigest(),
        "remote_code": job.trust_remote_code,
        "versions": {"autopeft": __version__, **{n: version(n) for n in ("numpy", "torch", "transformers")}},
    }


def pack(state: State, identity: Mapping[str, Any], spent: Cost, inherited: Cost = Cost()) -> dict[str, bytes]:  # noqa: B008
    """Returns a checkpoint as files.

    Args:
        state: Where the run is; its tensors are copied here.
        identity: What `identity_of` gives for the job.
        spent: What the trial has cost so far, all attempts together.
        inherited: What the trials before it had cost whose work it went on from.

    Cost: two copies of the tensors (three times the trained parameters) for as long as it takes.
    """
    random = state.random
    generators = {"generators.torch": random.torch, **{f"generators.cuda.{i}": s for i, s in enumerate(random.cuda)}}
    generators[LOSSES] = torch.tensor(state.losses, dtype=torch.float64)  # 8 bytes a step, and exact
    ordered = {name: tensor.detach().cpu().contiguous() for name, tensor in {**state.tensors, **generators}.items()}
    weights = save_tensors(ordered, metadata={"format": "pt"})
    content = {
        "format": FORMAT,
        "identity": dict(identity),
        "schedule": vars(state.schedule).copy(),
        "epoch": state.epoch,
        "done": state.done,
        "curve": list(state.curve),
        "summed": state.summed,
        "order": {**state.order, "state": {name: hex(word) for name, word in state.order["state"].items()}},
        "python": list(random.python),
        "numpy": dict(random.numpy),
        "names": sorted(ordered),
        "spent": vars(spent).copy(),
        "inherited": vars(inherited).copy(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    return {STATE: json.dumps({**content, "digest": _digest(content)}).encode(), TENSORS: weights}


def unpack(files: Mapping[str, bytes], identity: Mapping[str, Any]) -> tuple[State, Cost, Cost]:
    """Returns the state, `spent` and `inherited` of a checkpoint (see `pack`); `require_fit` says if it can be used.

    Args:
        files: What `pack` gave.
        identity: What `identity_of` gives for the job that is to go on.

    Raises:
        StudyError: Files are missing, superfluous, damaged, of another format, or of another job or other libraries.
    """
    if set(files) != {STATE, TENSORS}:
        raise StudyError(f"the checkpoint has the files {sorted(files)}", where="checkpoint", cure=_CURE)
    content = _read_state(files[STATE])
    _require_identity(content.get("identity"), identity)
    tensors = _read_tensors(files[TENSORS], content.get("sha256"), content.get("names"))
    try:
        losses = tensors.pop(LOSSES)
        if losses.dtype != torch.float64 or losses.ndim != 1:
            raise ValueError("the losses are no row of numbers")
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("generators.")}
        cuda = tuple(tensors[f"generators.cuda.{i}"] for i in range(len(tensors) - len(own) - 1))
        state = State(
            schedule=Schedule(**{name: _whole(value) for name, value in content["schedule"].items()}),
            epoch=_whole(content["epoch"]),
            done=_whole(content["done"]),
            curve=tuple(_number(loss) for loss in content["curve"]),
            summed=_number(content["summed"]),
            order={**content["order"], "state": {k: int(word, 16) for k, word in content["order"]["state"].items()}},
            tensors=own,
            random=RandomStates(tensors["generators.torch"], cuda, list(content["python"]), dict(content["numpy"])),
            losses=tuple(losses.tolist()),
        )
        spent, inherited = _cost(content["spent"]), _cost(content["inherited"])
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise StudyError(f"a field is missing or of the wrong type: {error}", where=STATE, cure=_CURE) from None
    return state, spent, inherited


def _cost(content: Mapping[str, Any]) -> Cost:
    cost = Cost(_number(content["cpu_seconds"]), _number(content["seconds"]), _whole(content["peak_bytes"]))
    if min(vars(cost).values()) < 0:
        raise ValueError("a cost below 0")
    return cost


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_state(raw: bytes) -> dict[str, Any]:
    if len(raw) > _LARGEST_STATE:
        raise StudyError(f"{len(raw)} bytes are too many", where=STATE, cure=_CURE)
    try:
        content = parse_json(raw)
        if not isinstance(content, dict):
            raise ValueError("no object")
        if content.get("format") != FORMAT:
            raise StudyError(f"format {str(content.get('format'))[:20]} is not known", where=STATE, cure=_CURE)
        digest = content.pop("digest", None)
        if digest != _digest(content):
            raise ValueError("not what was written")
    except ValueError as error:
        raise StudyError(f"damaged: {error}", where=STATE, cure=_CURE) from None
    return content


def _require_identity(found: Any, identity: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise StudyError("it does not say which job it is of", where=STATE, cure=_CURE)
    for name, value in identity.items():
        if found.get(name) != value:
            what = f"{name} {str(found.get(name))[:80]}, this one has {str(value)[:80]}"
            raise StudyError(f"the checkpoint is of a job with {what}", where=STATE, cure=_CURE)


def _read_tensors(raw: bytes, sha256: Any, names: Any) -> dict[str, torch.Tensor]:
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise StudyError("damaged: not what was written", where=TENSORS, cure=_CURE)
    try:
        header = int.from_bytes(raw[:8], "little")
        if header > min(_LARGEST_HEADER, len(raw) - 8):
            raise ValueError(f"a header of {header} bytes")
        tensors: dict[str, torch.Tensor] = load_tensors(raw)
        if sorted(tensors) != names:
            raise ValueError("other tensors than the state names")
    except (AttributeError, LookupError, OverflowError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise StudyError(f"cannot be read: {error}", where=TENSORS, cure=_CURE) from None
    return tensors


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{str(value)[:20]} is no whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{str(value)[:20]} is no finite number")
    return float(value)
