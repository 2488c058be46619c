"""Netns: hosts of one machine, each a network and UTS namespace with an address, a name, and ids of its own."""

import os
import random
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path


class NetnsHost:
    """One host: its worker runs there (`before`), reaches this machine at `outside`, and is reached at `inside`."""

    def __init__(self, name: str, folder: Path) -> None:
        tag = uuid.uuid4().hex[:6]
        self.name = f"{name}-{tag}"
        self.space = f"ff{tag}"
        self.state = folder / f"state-{name}"
        self.state.mkdir()
        self.machine_id = uuid.uuid4().hex
        self.boot_id = str(uuid.uuid4())
        near, far = f"ff{tag}a", f"ff{tag}b"
        # not the one generator of `random`, which may be at the same place in all processes of the tests
        chance = random.SystemRandom()
        subnet = f"10.{chance.randrange(60, 250)}.{chance.randrange(256)}"
        self.outside, self.inside = f"{subnet}.1", f"{subnet}.2"
        self.link = near
        for line in (
            f"netns add {self.space}",
            f"link add {near} type veth peer name {far}",
            f"link set {far} netns {self.space}",
            f"addr add {self.outside}/30 dev {near}",
            f"link set {near} up",
            f"-n {self.space} addr add {self.inside}/30 dev {far}",
            f"-n {self.space} link set {far} up",
            f"-n {self.space} link set lo up",
        ):
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)

    @property
    def before(self) -> list[str]:
        """What runs a command on this host."""
        script = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", script, self.name]

    def environment(self, api_port: int, redis_port: int) -> Mapping[str, str]:
        """Of its worker: other addresses of the same servers, another machine."""
        return {
            "PREFECT_API_URL": f"http://{self.outside}:{api_port}/api",
            "FLOWFLEET_REDIS": f"redis://{self.outside}:{redis_port}/0",
            "XDG_STATE_HOME": str(self.state),
            "FLOWFLEET_MACHINE_ID": self.machine_id,
            "FLOWFLEET_BOOT_ID": self.boot_id,
            "FFTEST_WHO": self.name,
            "NO_PROXY": f"{self.outside},{os.environ.get('NO_PROXY', '')}",
        }

    def reboot(self) -> None:
        """From now on it has another boot id, as after a restart of the machine."""
        self.boot_id = str(uuid.uuid4())

    def close(self) -> None:
        """Take the namespace and its link away."""
        subprocess.run(["ip", "netns", "del", self.space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.link], check=False, capture_output=True)
