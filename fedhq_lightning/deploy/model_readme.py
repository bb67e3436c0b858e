"""Words of the folder `model/`: its README and its loader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.formats import FORMATS
from fedhq_lightning.deploy.model_to_write import describe_inputs

_LOADER = '''"""model.pt2, with torch alone: `from load_model import model`, or `python load_model.py` on zeros."""

import hashlib
import io
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # it needs none

import torch
from torch.utils._pytree import tree_map_only

content = Path(__file__).with_name("model.pt2").read_bytes()
if hashlib.sha256(content).hexdigest() != "{digest}":
    raise SystemExit("model.pt2 is not the file that this load_model.py was written with: it was changed or damaged")
torch.backends.nnpack.set_flags(False)  # without oneDNN torch would convolve in it, and round
program = torch.export.load(io.BytesIO(content))
model, (inputs, _) = program.module(), program.example_inputs  # zeros, two samples of them; any number will do

if __name__ == "__main__":
    with torch.inference_mode():
        outputs = model(*inputs)
    for name, values in (("inputs", inputs), ("outputs", outputs)):
        print(name, tree_map_only(torch.Tensor, lambda each: f"{{each.dtype}} {{tuple(each.shape)}}", values))
'''

_PROGRAM = """`model.pt2` is the model in integer arithmetic, as the scheme says. It runs with torch {torch} alone:

```python
from load_model import model

outputs = model(inputs)  # {inputs}
```

`python load_model.py` runs it on zeros and prints what goes in and what comes out. Elsewhere two lines do:
`import torch` and `model = torch.export.load("model.pt2").module()`."""

_PROGRAM_LIMITS = """- The batch may have any size from 1; all other sizes are fixed: {inputs}.
- It is for inference, on the CPU. There is nothing in it to train; take `weights.safetensors` for that.
- A `.pt2` file is for the torch that wrote it, {torch}; a later one may refuse it.
- Integers are small, not always fast: a small model runs slower than in float32. Measure it where it shall run.
- Where torch has no oneDNN, it convolves 16 samples and more in NNPACK, which rounds: call
  `torch.backends.nnpack.set_flags(False)`, as `load_model.py` does.
- What comes before {first} and after it (argmax, thresholds) is not in it."""

_PIXELS = """It takes {pixels}, and so do the other files but for the weights:
they normalize them themselves, (pixel - mean) / std with mean {mean} and std {std}."""

_PACKED = """`model.safetensors` holds packed integers and scales. There is no `model.pt2`: {reason}.

```python
from fedhq_lightning.quantize import load_packed

model = load_packed("model.safetensors", module)  # module: a new instance of {name}
```"""

_PACKED_LIMITS = """- It needs `fedhq_lightning` and the code of {name}.
- It is for inference; take `weights.safetensors` to train on."""

_FLOAT = "There is no scheme: the model is float32, and its weights are all there is."

_WEIGHTS = """`weights.safetensors` holds the same model's float32 weights{parts}, for further training:

```python
from safetensors.torch import load_file

module.load_state_dict(load_file("weights.safetensors"){strict})
```"""


def loader(program: bytes) -> str:
    """`load_model.py` of a program, and of no other one."""
    return _LOADER.format(digest=hashlib.sha256(program).hexdigest())


def text(
    folder: Path,
    name: str,
    scheme: str | None,
    deployment: Deployment,
    fp_metrics: Mapping[str, float],
    quantized_metrics: Mapping[str, float],
    held_out: str,
    leaves_out: bool = False,
) -> str:
    """README of a folder whose other files are written.

    Arguments are as in `write_model_folder`; `leaves_out`: whether the state lacks parts of the module.
    """
    torch_name = torch_version()
    inputs = "" if deployment.model is None else describe_inputs(deployment.model.example_args)
    if deployment.export == "float32":
        what, limits, file = _FLOAT, "", None
    elif deployment.export == "packed":
        what = _PACKED.format(name=name, reason=deployment.reason)
        limits, file = _PACKED_LIMITS.format(name=name), "model.safetensors"
    else:
        what = _PROGRAM.format(torch=torch_name, inputs=inputs)
        first = "`forward` (resizing, normalizing, tokenizing)"
        if deployment.model is not None and (pixels := deployment.model.pixels) is not None:
            what += "\n\n" + _PIXELS.format(pixels=pixels.in_words(), mean=list(pixels.mean), std=list(pixels.std))
            first = "the pixels (resizing)"
        limits, file = _PROGRAM_LIMITS.format(torch=torch_name, inputs=inputs, first=first), "model.pt2"
    figures = _figures(folder, file, scheme, fp_metrics, quantized_metrics, held_out)
    weights = _WEIGHTS.format(parts="", strict="")
    if leaves_out:
        weights = _WEIGHTS.format(parts=", but for what its `state_dict` leaves out", strict=", strict=False")
    others = _other_files(deployment)
    parts = [f"# {name}, {scheme or 'float32'}", what, *others, weights, "## Figures", figures]
    if limits:
        parts += ["## Limits", limits]
    return "\n\n".join(parts) + "\n"


def _other_files(deployment: Deployment) -> list[str]:
    """A paragraph on each file beside `model.pt2`, and one on those that could not be written."""
    forms = {form.file: form for form in FORMATS.values()}
    if deployment.model is None:
        return []
    found, missing = [], []
    for file in deployment.files:
        if file.reason:
            missing.append(f"There is no `{file.name}`: {file.reason}.")
        elif file.name in forms and file.agreement is not None:
            usage = forms[file.name].usage(deployment.model)
            text = f"`{file.name}` ({file.bytes:,} bytes) is the same model for {file.runtime}"
            note = forms[file.name].note
            found.append(f"{text}: {file.agreement.in_words()}.\n\n```python\n{usage}\n```\n\n{note}")
    return found + missing


def torch_version() -> str:
    """The version of torch without the name of its build."""
    return torch.__version__.split("+")[0]


def _figures(
    folder: Path,
    file: str | None,
    scheme: str | None,
    fp_metrics: Mapping[str, float],
    quantized_metrics: Mapping[str, float],
    held_out: str,
) -> str:
    weights = "weights.safetensors"
    rows = [("", "float32", scheme or ""), ("---", "---:", "---:")]
    for metric in dict.fromkeys([*fp_metrics, *quantized_metrics]):
        rows.append((f"`{metric}`", _figure(fp_metrics.get(metric)), _figure(quantized_metrics.get(metric))))
    sizes = [f"`{each}`, {(folder / each).stat().st_size:,} bytes" for each in (weights, file) if each]
    rows.append(("size", sizes[0], sizes[1] if file else ""))
    lines = ["| " + " | ".join(row if file else row[:2]) + " |" for row in rows]
    if fp_metrics or quantized_metrics:
        lines += ["", f"Metrics are those on {held_out}."]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"
