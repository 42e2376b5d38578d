"""The processes that a process started, and what they listen on."""

import ipaddress
import re
from pathlib import Path


def below(process: int) -> list[int]:
    """The process and all that descend from it, now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def command_of(process: int) -> str:
    """Its command line; empty where it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def listening(processes: list[int]) -> dict[str, set[str]]:
    """The addresses on which these accept connections, by command line."""
    by_inode = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                by_inode[words[9]] = _address(words[1].partition(":")[0])
    found: dict[str, set[str]] = {}
    for process in processes:
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            try:
                inode = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            except OSError:
                continue
            if inode and inode[1] in by_inode:
                found.setdefault(command_of(process), set()).add(by_inode[inode[1]])
    return found


def _address(words: str) -> str:
    packed = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)
