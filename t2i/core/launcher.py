"""Launchers: what starts the processes that share tasks, on this machine or on a Ray cluster."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from t2i.core.machine import cores
from t2i.core.params import Section
from t2i.core.workers import Start, Workers, answer_to, content_of

_INHERITED = ("GOMP_SPINCOUNT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "T2I_WORK_DIR")
"""Variables that an actor gets from the command. No others: the cluster shows and logs them, and a token may be among them."""

_LOST = 3
"""How often a task is given to another actor after its actor was lost."""


@runtime_checkable
class Tasks(Protocol):
    """Processes that each do one task at a time."""

    def submit(self, task: Any) -> Future[bytes]:
        """Gives a task to the next free process, and returns its future answer."""
        ...

    def close(self) -> None:
        """Ends the processes."""
        ...


class Local(Section):
    """Processes of this machine; `runtime.processes` is their number."""

    name: Literal["local"]

    def workers(self, start: Start, processes: int) -> Tasks:
        """Returns the processes."""
        return Workers(start, processes, "runtime.processes")

    def count(self, processes: int) -> int:
        """Returns the number of processes."""
        return processes


class Ray(Section):
    """Actors of a Ray cluster, whose machines have the same checkout, packages and shared folder at the same paths."""

    name: Literal["ray"]
    address: str | None
    """Address of the cluster; `auto`: the one of this machine; null: one of this machine alone, for this command."""
    actors: int = Field(ge=1)
    """Number of actors."""
    gpus_per_actor: float = Field(ge=0)
    cpus_per_actor: float = Field(gt=0)

    def workers(self, start: Start, processes: int) -> Tasks:
        """Returns the actors.

        Raises:
            ValueError: if Ray is not installed, or there is no cluster at the address.
        """
        del processes
        return _Actors(self, start)

    def count(self, processes: int) -> int:
        """Returns the number of actors."""
        del processes
        return self.actors


Launcher = Annotated[Local | Ray, Field(discriminator="name")]


class _Actors:
    """Actors of a Ray cluster. Ray starts a lost actor again, where there is room, and gives it its task again."""

    def __init__(self, section: Ray, start: Start) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(
                "`runtime.launcher` is ray, which is not installed: pip install 't2i[ray]', or set it to {name: local}"
            ) from None
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        here = {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if section.address is None else {}
        try:
            ray.init(
                section.address,
                runtime_env={"env_vars": inherited},
                log_to_driver=False,
                logging_level="error",
                **here,
            )
        except (ConnectionError, RuntimeError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"`runtime.launcher.address` is {section.address}, but no cluster answers there: {line}") from None
        kind = ray.remote(num_cpus=section.cpus_per_actor, num_gpus=section.gpus_per_actor)(_Actor)
        settings = kind.options(max_restarts=-1, max_task_retries=_LOST)
        self._actors = [settings.remote(start, os.getcwd(), section.cpus_per_actor) for _ in range(section.actors)]
        self._free = list(self._actors)
        self._threads = ThreadPoolExecutor(section.actors, "actor")

    def submit(self, task: Any) -> Future[bytes]:
        """Gives a task to the next free actor, and returns its future answer.

        The answer raises a ValueError or a RuntimeError with the message of the one that ended the task, or a ValueError if its
        actors were lost again and again.
        """
        return self._threads.submit(self._do, task)

    def close(self) -> None:
        """Ends the actors, in the middle of their work if there is any."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._threads.shutdown(cancel_futures=True)
        self._ray.shutdown()

    def _do(self, task: Any) -> bytes:
        actor = self._free.pop()
        try:
            answer: bytes = self._ray.get(actor.do.remote(task))
        except self._ray.exceptions.RayError as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"its Ray actor was lost {1 + _LOST} times ({line}); see the logs of the cluster") from None
        finally:
            self._free.append(actor)
        return content_of(answer)


class _Actor:
    """A process on a machine of the cluster."""

    def __init__(self, start: Start, folder: str, cpus: float) -> None:
        self._start, self._folder, self._cpus = start, folder, cpus

    @cached_property
    def _done(self) -> Callable[[Any], bytes]:
        os.chdir(self._folder)
        return self._start(0, max(1, int(cores() / self._cpus)))  # Ray shows an actor its own GPUs alone

    def do(self, task: Any) -> bytes:
        return answer_to(lambda its: self._done(its), task)
