"""Containers without an engine: a process in namespaces of its own, on a root folder of its own.

Linux and root are needed, nothing else. The base image is made of this machine: its `/usr` (read-only), the files of
`/etc` that programs look for, and, at `/usr/local`, the Python that runs the tests, without any package.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

PATH: Final = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_ETC: Final = (
    *("login.defs", "nsswitch.conf", "resolv.conf", "mime.types"),
    *("ld.so.conf", "ld.so.conf.d", "ssl", "alternatives"),
)
_FOLDERS: Final = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "root",
    "home",
    "opt",
    "var/tmp",
    "usr/local/bin",
    "usr/local/lib",
)
# Nothing outlives the tests, even if they are killed.
_WITH_US: Final = ("/usr/bin/setpriv", "--pdeathsig=KILL")
# What `init: true` is: it reaps what others leave behind, and passes SIGTERM on.
_INIT: Final = """\
cd "$1"; shift
"$@" & child=$!
trap 'kill -TERM "$child"' TERM INT
code=0; wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
exit "$code"
"""


@dataclass(frozen=True)
class Bind:
    """A folder or file of the host, and where a container sees it."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Box:
    """What a process runs in.

    Args:
        root: The root folder.
        scratch: An empty folder for what is mounted, and for what is written when `root` must stay as it is.
        binds: What of the host is seen inside.
        environment: All of it.
        user: User and group id.
        is_built: The root is written to, with all of root's rights and the machine's network: a RUN. Otherwise it is
            read-only, without rights, in a network of its own: a service.
        shm_size: Of `/dev/shm`.
    """

    root: Path
    scratch: Path
    binds: tuple[Bind, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int = 0
    is_built: bool = False
    shm_size: str = "64m"


def make_base(root: Path) -> None:
    """The files of a bare image with Python, without packages."""
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / folder).symlink_to(f"usr/{folder}")
    (root / "etc").mkdir()
    for name in _ETC:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, root / "etc" / name, symlinks=True)
        elif source.exists():
            shutil.copy2(source, root / "etc" / name)
    for name in ("passwd", "group"):
        lines = Path("/etc", name).read_text(encoding="utf-8").splitlines(keepends=True)
        system = [
            line for line in lines if not 1000 <= int(line.split(":")[2]) < 65534
        ]  # no people in an image
        (root / "etc" / name).write_text("".join(system), encoding="utf-8")
    _copy_python(Path(sys.base_prefix), root / "usr/local")


def _copy_python(prefix: Path, target: Path) -> None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2((prefix / "bin" / name).resolve(), target / "bin" / name)
    for alias in ("python", "python3"):
        (target / "bin" / alias).symlink_to(name)
    for library in (prefix / "lib").glob("libpython3*"):
        shutil.copy2(library, target / "lib", follow_symlinks=False)
    left_out = shutil.ignore_patterns("site-packages", "test", "__pycache__")
    shutil.copytree(prefix / "lib" / name, target / "lib" / name, symlinks=True, ignore=left_out)


def start(box: Box, command: Sequence[str], output: IO[str], folder: str = "/") -> subprocess.Popen[str]:
    """Starts a command in a box; it ends with all of its children when the process that is returned ends."""
    box.scratch.mkdir(parents=True, exist_ok=True)
    private = ["--mount", "--pid", "--fork", "--kill-child"] + ([] if box.is_built else ["--net", "--ipc"])
    inside = ["/bin/bash", "-c", _INIT, "init", folder, *command]
    enter = f"{_mount_script(box)}\nexec chroot {shlex.quote(str(_merged(box)))} {shlex.join(_as_user(box, inside))}"
    return subprocess.Popen(
        [*_WITH_US, "/usr/bin/unshare", *private, "bash", "-euc", enter],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={"PATH": PATH},
        text=True,
    )


def execute(
    box: Box, process: subprocess.Popen[str], command: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Runs a command beside one that runs, as `docker exec` does."""
    inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    if not inside:
        return subprocess.CompletedProcess(command, 125, "", "it does not run")
    enter = [
        "/usr/bin/nsenter",
        f"--target={inside[0]}",
        "--mount",
        "--pid",
        "--net",
        "--ipc",
        "--root",
        "--wd",
    ]
    return subprocess.run(
        [*enter, *_as_user(box, command)], env={"PATH": PATH}, text=True, capture_output=True, check=False
    )


def stop(process: subprocess.Popen[str]) -> int:
    """Asks a box to end, as `docker stop` does, and ends it if it has not after 40 s. The exit code."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if process.poll() is None:
        for child in children.read_text(encoding="ascii").split():
            os.kill(int(child), 15)
    try:
        return process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _as_user(box: Box, command: Sequence[str]) -> list[str]:
    limits = [] if box.is_built else ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    user = [f"--reuid={box.user}", f"--regid={box.user}", "--clear-groups"]
    variables = [f"{name}={value}" for name, value in box.environment.items()]
    return ["/usr/bin/setpriv", *user, *limits, "/usr/bin/env", "-i", *variables, *command]


def _merged(box: Box) -> Path:
    return box.scratch / "root"


def _mount_script(box: Box) -> str:
    """Mounts the root and all that belongs into it; the folder of the machine's `/usr` keeps its own `local`."""
    root = shlex.quote(str(_merged(box)))
    side = shlex.quote(str(box.scratch / "local"))
    upper, work = (shlex.quote(str(box.scratch / name)) for name in ("written", "work"))
    image = shlex.quote(str(box.root))
    layers = f"lowerdir={image},upperdir={upper},workdir={work}"
    lines = [
        f"mkdir -p {root} {side} {upper} {work}",
        f"mount --bind {image} {root}" if box.is_built else f"mount -t overlay overlay -o {layers} {root}",
        *(_mount_point(bind, _merged(box)) for bind in box.binds),
        f"mount --bind {root}/usr/local {side}",
        f"mount --bind /usr {root}/usr; mount -o remount,bind,ro {root}/usr",
        f"mount --bind {side} {root}/usr/local",
        "" if box.is_built else f"mount -o remount,bind,ro {root}/usr/local; mount -o remount,ro {root}",
        f"mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount --rbind /dev {root}/dev",
        f"mount -t tmpfs -o mode=1777,size={box.shm_size} tmpfs {root}/dev/shm",  # noqa: S108 - in the box
        f"mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs {root}/tmp",  # noqa: S108 - in the box
        *(_bind(bind, _merged(box)) for bind in box.binds),
        ""
        if box.is_built
        else "until ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.05; done",
    ]
    return "\n".join(line for line in lines if line)


def _mount_point(bind: Bind, root: Path) -> str:
    target = shlex.quote(f"{root}{bind.target}")
    folder = shlex.quote(str(Path(f"{root}{bind.target}").parent))
    return f"mkdir -p {target}" if bind.source.is_dir() else f"mkdir -p {folder}; touch {target}"


def _bind(bind: Bind, root: Path) -> str:
    target = shlex.quote(f"{root}{bind.target}")
    mount = f"mount --bind {shlex.quote(str(bind.source))} {target}"
    return f"{mount}; mount -o remount,bind,ro {target}" if bind.read_only else mount


class Network:
    """A bridge in a namespace that nothing leads out of: names and addresses for boxes, no way to the host."""

    def __init__(self) -> None:
        """Makes the bridge; a process holds it until `close`."""
        self.addresses: dict[str, str] = {}
        self._holder = subprocess.Popen([*_WITH_US, "/usr/bin/unshare", "--net", "sleep", "infinity"])
        while Path(f"/proc/{self._holder.pid}/comm").read_text(encoding="ascii").strip() != "sleep":
            time.sleep(0.01)
        self._inside(self._holder.pid, "ip link add bridge type bridge; ip link set bridge up")

    def name(self, name: str) -> str:
        """Gives a name its address."""
        return self.addresses.setdefault(name, f"10.213.0.{len(self.addresses) + 2}")

    def attach(self, process: subprocess.Popen[str], name: str) -> None:
        """Puts a box that waits for its network onto the bridge."""
        address, index = self.name(name), self.name(name).rpartition(".")[2]
        while Path(f"/proc/{process.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.01)
        peer = f"type veth peer name eth0 netns {process.pid}"
        self._inside(
            self._holder.pid, f"ip link add box{index} {peer}; ip link set box{index} master bridge up"
        )
        self._inside(process.pid, "ip link set lo up; ip link set eth0 up")
        self._inside(process.pid, f"ip addr add {address}/24 dev eth0; ip route add default dev eth0")

    def close(self) -> None:
        """Ends the bridge."""
        self._holder.kill()
        self._holder.wait()

    @staticmethod
    def _inside(pid: int, script: str) -> None:
        subprocess.run(["/usr/bin/nsenter", f"--target={pid}", "--net", "sh", "-ec", script], check=True)


def index_settings() -> tuple[dict[str, str], tuple[Bind, ...]]:
    """How pip reaches packages on this machine, for the RUNs of a build: variables, and local indexes.

    An index that cannot be reached is not asked again and again: the machine's own has to do.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    settings = {"PIP_RETRIES": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    for name, value in re.findall(r"^(?:global|install|:env:)\.(\S+)='(.*)'$", listed.stdout, re.MULTILINE):
        settings[f"PIP_{name.upper().replace('-', '_')}"] = value.replace("\\n", "\n")
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    words = " ".join(settings.values()).replace("file://", "").split()
    paths = (Path(word) for word in words if word.startswith("/"))
    # An index links to files beside it.
    folders = {path.parent if path.name == "simple" else path for path in paths if path.is_dir()}
    return settings | proxies, tuple(Bind(folder, str(folder), read_only=True) for folder in sorted(folders))
