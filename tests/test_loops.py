"""What a loop of one's own holds is kept, named, or refused before the first step: as people write loops."""

from __future__ import annotations

import io
import random
import subprocess
from pathlib import Path

import pytest
import torch
from loops import Pair, interrupted
from pytorch_kills import EXAMPLES, SMALL, check

import train_cloud
import train_cloud.pytorch.loop  # what each forked process would import
from train_cloud.config import load_run_file
from train_cloud.config.current import training
from train_cloud.errors import InputError
from train_cloud.sb3.pickling import LearnerPickler, Nowhere, read

MODEL = """
def main():
    model = nn.Linear(4, 4)
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    def update(loss):
        opt.zero_grad(); loss.backward(); opt.step()
        return loss.item()
"""
RUN = """
    with train_cloud.resumable(model=model, opt=opt) as run:
        for step in run.steps():
"""
LOSS = "model(torch.randn(3, 4)).pow(2).mean()"

KEPT = {
    "local variables, a deque, a counter, a list in a dict": MODEL
    + f"""
    ema, memory, seen, notes = 0.0, collections.deque(maxlen=8), collections.Counter(), {{"losses": []}}
    {RUN}
            memory.append(torch.randn(4)); seen[step % 3] += 1
            x = torch.stack(random.sample(list(memory), min(3, len(memory))))
            notes["losses"].append(update(model(x).pow(2).mean() * (1 + ema)))
            ema = 0.9 * ema + 0.1 * notes["losses"][-1]
            run.log(ema=ema, seen=seen[1], n=len(notes["losses"]))
""",
    "gradients that are added up": MODEL
    + f"""
    {RUN}
            {LOSS}.backward()
            if step % 4 == 3:
                opt.step(); opt.zero_grad()
""",
    "closures, globals, attributes of classes": """
STATE, calls = {"best": 1e9}, 0
class Trainer:
    count = 0
    def __init__(self):
        self.model = nn.Linear(4, 4); self.opt = torch.optim.SGD(self.model.parameters(), 0.1, 0.9); self.history = []
    def fit(self):
        n = 0
        def number():
            nonlocal n
            n += 1
            return n
        with train_cloud.resumable(model=self.model, opt=self.opt) as run:
            for step in run.steps():
                global calls
                calls += 1; Trainer.count += 1
                loss = self.model(torch.randn(3, 4)).pow(2).mean() * number()
                self.opt.zero_grad(); loss.backward(); self.opt.step()
                self.history.append(loss.item()); STATE["best"] = min(STATE["best"], loss.item())
                run.log(loss=loss, best=STATE["best"], calls=calls, count=Trainer.count, n=len(self.history))
def main(): Trainer().fit()
""",
    "an optimiser with a closure, parameters that are tied or of two types": """
def main():
    emb, out = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    out.weight = emb.weight
    low = nn.Linear(4, 4).bfloat16()
    model = nn.ModuleDict(dict(emb=emb, out=out, low=low))
    opt = torch.optim.LBFGS(list(emb.parameters()), lr=0.1, max_iter=2, history_size=3)
    sgd = torch.optim.SGD(low.parameters(), 0.1)
    for p in low.parameters(): sgd.state[p]["master"] = p.detach().float()
    with train_cloud.resumable(model=model, opt=opt, sgd=sgd) as run:
        for step in run.steps():
            i = torch.randint(0, 10, (5,))
            def closure():
                opt.zero_grad(); loss = nn.functional.cross_entropy(out(emb(i)), i.roll(1)); loss.backward()
                return loss
            loss = opt.step(closure)
            sgd.zero_grad(); low(torch.randn(3, 4).bfloat16()).float().pow(2).mean().backward()
            for p in low.parameters():
                sgd.state[p]["master"] -= 0.0123 * p.grad.float(); p.data.copy_(sgd.state[p]["master"])
            run.log(loss=loss)
""",
    "lazy modules, modules and parameters that are added, frozen ones": """
class Noted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.LazyLinear(4); self.register_buffer("h", torch.zeros(4), persistent=False); self.n = 0
    def forward(self, x):
        y = self.inner(x) + self.h; self.h = self.h * 0.5 + y.detach().mean(0); self.n += 1
        return y * self.n
def main():
    model = nn.Sequential(Noted()); model(torch.zeros(1, 4)); opt = torch.optim.Adam(model.parameters(), lr=0.01)
    with train_cloud.resumable(model=model, opt=opt) as run:
        for step in run.steps():
            if step == 5:
                model.append(nn.Linear(4, 2)); opt.add_param_group(dict(params=model[1].parameters(), lr=0.5))
                model[0].inner.bias.requires_grad_(False)
            loss = model(torch.randn(3, 4)).pow(2).mean(); opt.zero_grad(); loss.backward(); opt.step()
            run.log(loss=loss)
""",
    "a scaler, an averaged model, schedules": """
def main():
    model = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)); opt = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
    swa = torch.optim.swa_utils.AveragedModel(model)
    warm = torch.optim.lr_scheduler.LinearLR(opt, total_iters=5)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        opt, [warm, torch.optim.lr_scheduler.LambdaLR(opt, lambda s: 0.9**s)], [5])
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=1)
    with train_cloud.resumable(model=model, opt=opt, scaler=scaler, swa=swa, schedule=schedule, p=plateau) as run:
        for step in run.steps():
            with torch.autocast("cpu", dtype=torch.bfloat16): loss = model(torch.randn(3, 4)).float().pow(2).mean()
            opt.zero_grad(); scaler.scale(loss).backward(); scaler.step(opt); scaler.update(); schedule.step()
            if step % 3 == 0: swa.update_parameters(model); plateau.step(loss.item())
            run.log(loss=loss, scale=scaler.get_scale(), lr=opt.param_groups[0]["lr"])
""",
    "batches of a loader that counts and draws": MODEL
    + """
    class Counted(torch.utils.data.Dataset):
        n = 0
        def __len__(self): return 22
        def __getitem__(self, i): self.n += 1; return torch.randn(4) * self.n + random.random()
    own = torch.Generator().manual_seed(2)
    loader = torch.utils.data.DataLoader(Counted(), batch_size=4, shuffle=True, generator=own)
    data = train_cloud.batches(loader)
    with train_cloud.resumable(model=model, opt=opt, data=data) as run:
        for step in run.steps():
            run.log(loss=update(model(next(data)).pow(2).mean()), epoch=data.epoch)
""",
    "batches of workers": MODEL
    + """
    class Drawn(torch.utils.data.Dataset):
        def __len__(self): return 24
        def __getitem__(self, i): return torch.randn(4) + random.random()
    data = train_cloud.batches(torch.utils.data.DataLoader(Drawn(), batch_size=4, shuffle=True, num_workers=2))
    with train_cloud.resumable(model=model, opt=opt, data=data) as run:
        for step in run.steps(): run.log(loss=update(model(next(data)).pow(2).mean()))
""",
    "epochs as steps": MODEL
    + f"""
    loader = torch.utils.data.DataLoader(torch.randn(24, 4), batch_size=8, shuffle=True)
    {RUN}
            total = 0.0
            for x in loader: total += update(model(x + torch.randn(1)).pow(2).mean())
            run.log(total=total)
""",
    "rows": """
class Buffer:
    def __init__(self): self.columns = {"x": np.zeros((12, 4), np.float32), "t": torch.zeros(12)}; self.count = 0
    def add(self, x):
        at = self.count % 12
        self.columns["x"][at] = x; self.columns["t"][at] = float(x.sum()); self.count += 1
def main():
    model, buffer = nn.Linear(4, 4), Buffer()
    with train_cloud.resumable(model=model, rows={"replay": buffer}) as run:
        for step in run.steps():
            for _ in range(2): buffer.add(np.random.randn(4).astype(np.float32))
            chosen = np.random.randint(0, min(12, buffer.count), 4)
            run.log(x=buffer.columns["x"][chosen].sum(), t=buffer.columns["t"].sum())
""",
    "tqdm, a generator of one's own around the steps, a while loop's iterator": MODEL
    + """
    from tqdm import tqdm
    def twice(steps):
        k = 0
        for step in steps:
            k += 2
            yield step, k
    with train_cloud.resumable(model=model, opt=opt) as run:
        for step, k in twice(tqdm(run.steps(), disable=True)):
            run.log(k=k, loss=update(model(torch.randn(3, 4)).pow(2).mean()))
""",
    "generators, settings, iterators that can be copied, a file that is read": MODEL
    + f"""
    g, rng, count = torch.Generator().manual_seed(3), np.random.default_rng(5), itertools.count(4)
    words, file = iter([random.random() for _ in range(50)]), open(__file__)
    {RUN}
            if step == 9: torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)
            run.log(a=torch.randn(1, generator=g), b=rng.random(), c=next(count), d=next(words), e=len(file.readline()))
            run.log(f=torch.rand(1), g=float(torch.is_grad_enabled()))
""",
    "environments": MODEL
    + f"""
    import gymnasium
    envs = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(2)])
    seen, _ = envs.reset(seed=3)
    {RUN}
            for _ in range(5):
                action = envs.action_space.sample() if random.random() > 0.5 else np.array([0, 1])
                seen, reward, end, cut, _ = envs.step(action)
            run.log(seen=seen.sum())
""",
    "an early end": MODEL
    + f"""
    bad = 0
    {RUN}
            run.log(loss=update({LOSS}))
            bad += 1
            if bad >= 16: break
""",
    "a run file, which lies in another folder in each session": MODEL
    + f"""
    import os, pathlib, tempfile
    with tempfile.TemporaryDirectory(suffix=str(os.getpid())) as folder:
        path = pathlib.Path(folder, "run.yaml")
        path.write_text("run_id: a\\nentry_point: t.py\\ntotal_steps: 9\\nsave_frequency: 3\\ncode: {{folder: .}}\\n"
                        "parameters: {{lr: 1.0}}\\n")
        pathlib.Path(folder, "t.py").touch()
        config = train_cloud.load_run_file(path)
    held, settings = {{"config": config, "code": config.code}}, config.parameters
    {RUN}
            settings["lr"] *= 0.9
            run.log(loss=update({LOSS} * held["config"].parameters["lr"]), n=len(held["code"].folder.anchor))
""",
    "a large table that stays, and one that changes": MODEL
    + f"""
    table, other = torch.randn(400_000), np.zeros(400_000)
    pairs, ring, rows = [(i, str(i)) for i in range(20_000)], [0.0] * 20_000, [[0.0] for i in range(20_000)]
    {RUN}
            other[step] += 1.0
            ring[9_000 + step] = float(other.sum())
            rows[9_000][0] += ring[9_000 + step // 2]
            run.log(a=table[step], b=other.sum(), c=pairs[step][0], d=rows[9_000][0] + ring[9_003])
""",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", KEPT)
def test_what_a_loop_holds_is_kept(what: str, tmp_path: Path) -> None:
    pair = interrupted(tmp_path, KEPT[what], at=(7, 13))
    assert not pair.whole.error and not any(piece.error for piece in pair.pieces), pair.pieces[-1].error
    assert not pair.differences and not pair.named


NAMED = {
    "itertools.cycle of a loader": (
        MODEL + f"    batches = itertools.cycle(torch.utils.data.DataLoader(torch.randn(40, 4), 4)){RUN}"
        "            run.log(x=next(batches).sum())\n",
        "main.batches: NotImplementedError",
    ),
    "a graph that goes on": (
        MODEL + f"    total = 0{RUN}            total = total + {LOSS}\n"
        "            if step % 5 == 4: update(total); total = 0\n",
        "main.total: it is a part of a graph",
    ),
    "a dataset that draws what the training draws": (
        MODEL + """
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True: yield torch.randn(4)
    data = train_cloud.batches(torch.utils.data.DataLoader(Stream(), batch_size=3))
    with train_cloud.resumable(model=model, opt=opt, data=data) as run:
        for step in run.steps(): run.log(x=next(data).sum())
""",
        "data: Stream draws from the global generators",
    ),
    "a large table that is another one each time": (
        MODEL + "    table = torch.from_numpy(np.random.default_rng(__import__('os').getpid()).random(400_000))"
        f"{RUN}            run.log(x=table[step])\n",
        "main.table: it is large",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMED)
def test_what_is_lost_is_named(what: str, tmp_path: Path) -> None:
    body, named = NAMED[what]
    pair = interrupted(tmp_path, body, at=(7,))
    assert not any(piece.error for piece in pair.pieces), pair.pieces[-1].error
    assert named in pair.named


LOADER = "    loader = torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=4)\n"
REFUSED = {
    "an iterator of a loader": (MODEL + LOADER + f"    it = iter(loader){RUN}            next(it)\n", "main.it"),
    "a generator": (MODEL + f"    it = (i for i in range(99)){RUN}            next(it)\n", "main.it"),
    "a loader as data": (
        MODEL + LOADER + "    with train_cloud.resumable(model=model, data=loader) as run: pass\n",
        "train_cloud.batches(loader)",
    ),
    "loops around": (
        MODEL + LOADER + "    with train_cloud.resumable(model=model, opt=opt) as run:\n        steps = run.steps()\n"
        "        for epoch in range(4):\n            for x in loader: next(steps)\n",
        "make run.steps() the outermost loop",
    ),
    "enumerate": (
        MODEL + RUN.replace("for step in run.steps()", "for i, step in enumerate(run.steps())") + "            pass\n",
        "run.steps() gives the step's number itself",
    ),
    "zip with a loader": (
        MODEL + LOADER + RUN.replace("for step in run.steps()", "for step, x in zip(run.steps(), loader)")
        + "            pass\n",
        "zip with _SingleProcessDataLoaderIter",
    ),
    "a second loop": (MODEL + RUN + "            pass\n        for step in run.steps(): pass\n", "a second loop"),
    "a second resumable": (
        MODEL + "    for phase in range(2):\n        with train_cloud.resumable(model=model, opt=opt) as run:\n"
        "            for step in run.steps(): pass\n",
        "it stands in a loop",
    ),
    "a parameter that nobody has": (
        MODEL + "    opt.add_param_group({'params': nn.Linear(3, 3).parameters()})" + RUN + "            pass\n",
        "opt.param_groups[1]['params'][0]",
    ),
    "workers that outlive an epoch": (
        MODEL + "    data = torch.utils.data.DataLoader(torch.randn(8, 4), num_workers=1, persistent_workers=True)\n"
        "    train_cloud.batches(data)\n",
        "persistent_workers",
    ),
    "no state": (
        MODEL + "    with train_cloud.resumable(model=model, what=lambda: 1, it=map(abs, [])) as run: pass\n",
        "resumable(it=)",
    ),
    "rows without columns": (
        MODEL + "    with train_cloud.resumable(model=model, rows={'replay': [1, 2]}) as run: pass\n",
        "rows.replay",
    ),
    "what is logged": (MODEL + RUN + "            run.log(x=torch.zeros(3))\n", "run.log(x=)"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_lost_is_refused_before_the_first_step(what: str, tmp_path: Path) -> None:
    body, named = REFUSED[what]
    pair = interrupted(tmp_path, body, total=3, at=())
    assert pair.whole.kind == "InputError" and named in pair.whole.error.split("\n")[0], pair.whole.error
    assert not pair.whole.logged


def test_outside_of_train_cloud_the_script_runs_as_ever() -> None:
    model = torch.nn.Linear(2, 2)
    with train_cloud.resumable(model=model) as run:
        seen = []
        for step in run.steps(5):
            run.log(x=step)
            seen.append(step)
    assert seen == [0, 1, 2, 3, 4]
    with train_cloud.resumable(model=model) as run, pytest.raises(InputError, match="give a number"):
        run.steps()


@pytest.mark.parametrize("name", SMALL)
def test_an_example_differs_from_its_plain_form_in_five_lines(name: str) -> None:
    done = subprocess.run(
        ["diff", "-w", "-B", str(EXAMPLES / name / "plain.py"), str(EXAMPLES / name / "train.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    new = [line for line in done.stdout.splitlines() if line.startswith(">") and line.strip("> ")]
    assert done.returncode == 1 and 3 <= len(new) <= 5, new


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_example_ends_the_same_through_kills_at_random_moments(name: str, tmp_path: Path) -> None:
    assert check(name, 5, random.Random(name), tmp_path) >= 4


def test_pairs_of_loops_can_differ(tmp_path: Path) -> None:
    body = MODEL + f"    import os{RUN}            run.log(pid=os.getpid()); update({LOSS} * (os.getpid() % 97))\n"
    pair: Pair = interrupted(tmp_path, body, total=6, at=(3,))
    assert pair.differences


def test_what_a_script_holds_of_its_session_is_the_next_sessions(tmp_path: Path) -> None:
    """A run file and a path to artifacts that a loop has put somewhere after it began."""
    sessions = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").touch()
        (tmp_path / name / "run.yaml").write_text(
            "run_id: a\nentry_point: train.py\ntotal_steps: 9\nsave_frequency: 3\ncode: {folder: .}\n"
        )
        sessions.append((load_run_file(tmp_path / name / "run.yaml"), tmp_path / name / "artifacts"))
    (config, folder), (next_config, next_folder) = sessions
    file = io.BytesIO()
    with training(config, folder):
        LearnerPickler(file).dump((config, [folder / "pictures" / "a.png"], tmp_path))
    with training(next_config, next_folder):
        found = read(file.getvalue(), (), Nowhere({}))
    assert found[0] is next_config and found[1:] == ([next_folder / "pictures" / "a.png"], tmp_path)
