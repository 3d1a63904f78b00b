"""A third party's PyTorch package, named by path alone: the commands of `docs/own_models.md`, run."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from dfke_jax import cli, data
from dfke_jax.commands import running
from dfke_jax.experiments import recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs/own_models.md").read_text()
BLOCKS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "shop/model.py" in block]
SMALL = {
    "knockoff": "--seeds 1 --student mlp_small --attack.clone.steps 200 --no-control --pool-dataset digits",
    "deep-inversion": "--seeds 1 --student mlp_small --arms deep_inversion --samples 60 --synthesis-batch 60 "
    "--synthesis.steps 40 --distillation-steps 30 --no-baselines",
}
FILES = {
    "__init__.py": "from .model import Net\n",
    "settings.py": "WIDTHS = (8, 16)\nCLASSES = 10\n",
    "layers.py": """
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Identity() if before == after and stride == 1 else nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        )

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))
""",
    "model.py": """
from pathlib import Path

import torch
from torch import nn

from . import settings
from .layers import Residual


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        first, last = settings.WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.Sequential(Residual(first, first, 1), Residual(first, last, 2))
        self.classify = nn.Linear(last, settings.CLASSES)

    def forward(self, x):
        return self.classify(self.blocks(self.stem(x)).mean((2, 3)))


def trained():
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return net.eval()
""",
}


def test_the_page_has_both_in_at_most_five_lines():
    """And every option is one that the recipe has."""
    assert [shlex.split(block)[2] for block in BLOCKS] == list(SMALL)
    for block in BLOCKS:
        assert len(block.splitlines()) <= 5
        _, run, name, *rest = shlex.split(block)
        assert run == "run"
        for more in ([], SMALL[name].split()):
            options = running._parse_run(recipe(name), [*rest, *more])
            assert options.settings.teacher == "shop/model.py:trained"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A package with weights, as its maker trained them, in the working directory; accuracy on the test digits, by PyTorch."""
    torch, tmp_path = pytest.importorskip("torch"), tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield made(torch, tmp_path, monkeypatch)


def made(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "shop").mkdir()
    for name, text in FILES.items():
        (tmp_path / "shop" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    from shop.model import Net  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net, digits = Net(), data.load("digits")
    pixels = lambda split: torch.tensor(split.images).permute(0, 3, 1, 2)
    images, labels = pixels(digits.train), torch.tensor(digits.train.labels, dtype=torch.long)
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for rows in torch.randint(len(images), (120, 64)):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        adam.step()
    torch.save(net.state_dict(), tmp_path / "shop/weights.pt")
    with torch.no_grad():
        answers = net.eval()(pixels(digits.test)).argmax(1).numpy()
    return 100 * float(np.mean(answers == digits.test.labels))


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=list(SMALL))
def test_it_is_attacked_and_distilled_from(shop, capsys, block):
    _, *line = shlex.split(block)
    assert cli.main([*line, *SMALL[line[1]].split(), "--out", line[1], "--quiet", "--devices", "1"]) == 0, (
        capsys.readouterr().err
    )
    arms = {arm["name"]: arm for arm in json.loads(Path(line[1], "result.json").read_text())["arms"]}
    assert shop > 90
    assert arms["teacher"]["accuracy"] == [pytest.approx(shop, abs=1e-3)]
    if line[1] == "knockoff":
        (stolen,) = (arm for arm in arms.values() if arm["role"] == "method")
        assert stolen["budget"]["victim_rows"] == 1000
        assert stolen["agreement"][0] > 60
    else:
        made, control = (arms[name]["metrics"]["label_agreement"][0] for name in ("deep_inversion", "control"))
        assert made > control + 20  # of images made for a class, the package puts more into it
        assert arms["real_data"]["agreement"][0] > 15  # thirty steps; chance is 10
    assert Path(line[1], "report.html").is_file()
