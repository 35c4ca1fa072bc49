"""Base images without a registry: debian:bookworm-slim by debootstrap, and Prometheus from Debian's package.

What a machine needs to reach its package registries (certificate authorities, mirror and proxy of apt, pip's
settings) goes into the *base*, so that the repository's own Dockerfiles build unchanged. Both bases are kept
as tar files in a cache folder for some weeks, so that a second run takes seconds.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from tests.compose.console import Failed, run, say
from tests.compose.engine import Engine

DEBIAN = "debian:bookworm-slim"
SUITE = "bookworm"
HERE = Path(__file__).parent
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# What debian:*-slim leaves out, now and in every later apt-get.
SLIM = """path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/lintian/*
"""
DAYS = 30
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "edge-attention" / "compose"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(name: str, recipe: Path) -> Path:
    """Where a base is kept: another file once what it is made by has changed."""
    made_by = hashlib.sha256(recipe.read_bytes()).hexdigest()[:8]
    return cache_folder() / f"{name}-{SUITE}-{architecture()}-{made_by}.tar"


def fresh(file: Path) -> bool:
    """Whether it is there and has what security updates of the last weeks brought."""
    return file.exists() and time.time() - file.stat().st_mtime < DAYS * 86400


def load_debian(engine: Engine) -> None:
    """Gives the engine DEBIAN, from the cache or built now."""
    file = cached("debian", Path(__file__))
    if not fresh(file):
        say(f"building {DEBIAN} by debootstrap (once; kept as {file})")
        _debootstrap(engine.folder / "base", file)
    changes = ['CMD ["bash"]']
    changes += [f"ENV {name}={os.environ[name]}" for name in PROXIES if os.environ.get(name)]
    words = [word for change in changes for word in ("--change", change)]
    engine.docker("import", *words, file, DEBIAN, deadline=180)
    say(f"{DEBIAN}: {image_bytes(engine, DEBIAN) / 1e6:.0f} MB")


def load_prometheus(engine: Engine, image: str) -> None:
    """Gives the engine `image` (the name the compose file uses), made of Debian's package."""
    file = cached("prometheus", HERE / "prometheus.Dockerfile")
    if fresh(file):
        engine.docker("load", "--input", file, deadline=180)
        engine.docker("tag", "edge-attention-test/prometheus", image)
    else:
        say(f"building {image} from Debian's package prometheus (once; kept as {file})")
        build(engine, HERE / "prometheus.Dockerfile", image, context=HERE)
        engine.docker("tag", image, "edge-attention-test/prometheus")
        part = file.with_suffix(".tmp")
        engine.docker("save", "--output", part, "edge-attention-test/prometheus", deadline=180)
        part.rename(file)


def build(
    engine: Engine, dockerfile: Path, tag: str, *, context: Path, arguments: tuple[str, ...] = ()
) -> None:
    """`docker build` on the host's network: this engine's containers reach no further than the machine."""
    words = [word for argument in arguments for word in ("--build-arg", argument)]
    engine.docker(
        "build", "--network=host", "--file", dockerfile, "--tag", tag, *words, context, deadline=600
    )


def image_bytes(engine: Engine, image: str) -> int:
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", image).split()[-1])


def architecture() -> str:
    return run(["dpkg", "--print-architecture"]).strip()


def _debootstrap(root: Path, file: Path) -> None:
    mirror, security = mirrors()
    key = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    keyring = [f"--keyring={key}"] if key.exists() else []
    options = ["--variant=minbase", "--include=ca-certificates", *keyring]
    run(["debootstrap", *options, SUITE, root, mirror], deadline=600)
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(SLIM)
    (root / "etc/apt/sources.list").write_text(
        f"deb {mirror} {SUITE} main\ndeb {mirror} {SUITE}-updates main\n"
        f"deb {security} {SUITE}-security main\n"
    )
    apt_settings(root / "etc/apt/apt.conf.d/90machine")
    certificates(root)
    pip_settings(root / "etc/pip.conf")
    for pattern in ("usr/share/man/*", "usr/share/locale/*", "usr/share/info/*", "var/lib/apt/lists/*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*root.glob("var/cache/apt/archives/*.deb"), *root.glob("usr/share/doc/*/*")]:
        if path.name != "copyright" and path.is_file():
            path.unlink()
    part = file.with_suffix(".tmp")
    run(["tar", "--numeric-owner", "-C", root, "-cf", part, "."])
    part.rename(file)
    shutil.rmtree(root)


def mirrors() -> tuple[str, str]:
    """The mirrors this machine's apt takes SUITE and its security updates from."""
    found: dict[str, str] = {}
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(ORIGIN) $(REPO_URI)"],
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] == "Debian":
            found.setdefault(words[0], words[2].rstrip("/"))
    missing = [suite for suite in (SUITE, f"{SUITE}-security") if suite not in found]
    if missing:
        raise Failed(
            f"this machine's apt knows no mirror of Debian's {' and '.join(missing)}, of which the base is "
            "built: add one to /etc/apt/sources.list.d and run apt-get update"
        )
    return found[SUITE], found[f"{SUITE}-security"]


def apt_settings(file: Path) -> None:
    """Proxies and the checks this machine's apt relaxes, where its mirror is a snapshot."""
    wanted = re.compile(r"Acquire::(https?::[Pp]roxy|Check-Valid-Until|Check-Date|https::CaInfo)\b.*")
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    lines = [line for line in dump.splitlines() if wanted.match(line)]
    file.write_text("\n".join([*lines, 'APT::Install-Recommends "false";', 'Acquire::Languages "none";', ""]))


def certificates(root: Path) -> None:
    """The authorities this machine trusts, its own ones included."""
    own = Path("/usr/local/share/ca-certificates")
    if own.is_dir():
        shutil.copytree(own, root / "usr/local/share/ca-certificates", dirs_exist_ok=True)
    run(["chroot", root, "update-ca-certificates"])
    if BUNDLE.exists():
        shutil.copyfile(BUNDLE, root / BUNDLE.relative_to("/"))


def pip_settings(file: Path) -> None:
    """Where pip finds packages, as here; folders of this machine mean nothing in a container and stay out."""
    settings = {"cert": str(BUNDLE)}
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], value.strip("'\"")
        if name in ("index-url", "proxy", "trusted-host", "timeout", "retries"):
            settings[name] = value
        elif name == "extra-index-url":
            remote = [url for url in value.split() if url.startswith("http")]
            if remote:
                settings[name] = " ".join(remote)
    parser = configparser.RawConfigParser()
    parser["global"] = settings
    with file.open("w") as out:
        parser.write(out)
