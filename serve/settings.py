"""Settings of the serving application; free of torch, ray and faiss. The index has its own beside it."""

from typing import Annotated, Literal

from limits import parse as parse_rate
from pydantic import BeforeValidator, Field, field_validator, model_validator

from data.settings import Settings
from serve.updates.settings import SqliteUpdatesSettings, UpdatesKind, sqlite_if_unsaid


class Limits(Settings):
    """What one request may ask for; past a limit the answer is 422 (413 for the body)."""

    max_body_bytes: int = Field(1_048_576, ge=1, description="bytes of a request's body")
    max_history_events: int = Field(5_000, ge=1, description="events of a request's history")
    max_events: int = Field(1_000, ge=1, description="events of one call of /v1/events")
    max_k: int = Field(1_000, ge=1, description="items of an answer")
    max_excluded_items: int = Field(1_000, ge=0, description="items that a request may exclude by id")
    max_only_items: int = Field(10_000, ge=1, description="items that a request may choose among, stated by id")
    max_item_updates: int = Field(1_000, ge=1, description="items of one call of /v1/items")
    max_conditions: int = Field(16, ge=0, description="conditions of a request, names and own categories counted")
    max_deadline_ms: int = Field(10_000, ge=1, description="milliseconds that a request may wait")


class Batching(Settings):
    """How concurrent requests share one forward pass."""

    max_batch_size: int = Field(32, ge=1, description="requests of one forward pass")


class CompiledShapes(Settings):
    """Sizes of batches that the encoder is compiled for (torch.compile; on a GPU, CUDA graphs) before it answers.

    A batch is padded to the smallest that holds it; one that none holds runs as it is. Every combination costs seconds
    of start-up.
    """

    histories: tuple[int, ...] = Field((1, 8, 32), min_length=1, description="histories of a batch")
    events: tuple[int, ...] = Field((), description="events of the longest; none: model.max_events alone")
    instructions: tuple[int, ...] = Field(
        (1,), min_length=1, description="instructions of a request, where the model takes conditions"
    )


class Encoding(Settings):
    """How histories become query vectors."""

    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the encoder; bf16 moves scores by thousandths and wants a processor that has it"
    )
    compiled: CompiledShapes | None = Field(None, description="shapes to compile for; null compiles nothing")


class Holders(Encoding):
    """Processes that each have a whole release in memory."""

    num_cpus: float = Field(1.0, ge=0, description="logical CPUs that Ray reserves for each")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of each; above 0 the model runs on CUDA")
    torch_threads: int = Field(1, ge=1, description="threads of the model, and as many of the index, of each")


class Replicas(Holders):
    """Replicas of the endpoint: API, model and index in one process."""

    min_replicas: int = Field(1, ge=1, description="replicas that always run")
    max_replicas: int = Field(1, ge=1, description="replicas at most; above the minimum, Serve scales by load")
    target_ongoing_requests: float = Field(16, gt=0, description="requests per replica that scaling aims at")
    upscale_delay_s: float = Field(10, ge=0, description="seconds of load before replicas are added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds of idleness before replicas are removed")

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self


class Searchers(Settings):
    """Processes that each hold one shard of the index (`index.shards`), asked by every replica of the endpoint."""

    replicas: int = Field(1, ge=1, description="searchers of each shard; with two, losing one is not noticed")
    num_cpus: float = Field(1.0, ge=0, description="logical CPUs that Ray reserves for each")
    threads: int = Field(1, ge=1, description="threads of one search")
    max_ongoing: int = Field(16, ge=1, description="batches that one searcher is asked at a time")


class Access(Settings):
    """Who may ask, and how often."""

    tokens_file: str | None = Field(
        None,
        description="file with a `NAME TOKEN` per line; what asks /v1 must send one (Authorization: Bearer TOKEN), or "
        "gets 401; read again when it changes; null asks for none",
    )
    rate: str | None = Field(
        None,
        description="requests of one token that one replica answers, as `100/second` or `5000/minute`; "
        "past that it gets 429; null sets no limit",
    )
    anyone: bool = Field(False, description="listen beyond this machine without tokens; something in front must ask")

    @field_validator("rate")
    @classmethod
    def _parsed(cls, rate: str | None) -> str | None:
        if rate is not None:
            try:
                parse_rate(rate)
            except ValueError:
                raise ValueError(f"found {rate!r}, expected a rate such as 100/second or 5000/minute") from None
        return rate


class Queueing(Settings):
    """How many requests may wait; past that a request is answered 503 at once.

    The replica counts, and not Serve's own limits: once a replica is full, Serve's router polls it
    with a growing pause, and throughput falls just when it is needed most.
    """

    max_in_flight: int = Field(
        128, ge=1, description="requests that one replica works on at a time, waiting ones included"
    )
    max_in_proxy: int = Field(
        256,
        ge=1,
        description="requests that wait in HAProxy (serve.haproxy) while each replica has all it may",
    )
    retry_after_seconds: int = Field(1, ge=1, description="seconds in the Retry-After header of a 503")


class StoreSettings(Settings):
    """What every store of histories has."""

    max_events: int = Field(1_000, ge=1, description="events kept of a user, the newest")


class SqliteSettings(StoreSettings):
    """One file, for endpoints of one machine."""

    kind: Literal["sqlite"] = "sqlite"
    path: str = Field("runs/histories.sqlite", description="the file, made if it is not there")


class RedisSettings(StoreSettings):
    """A Redis server or cluster, for endpoints of many machines; needs the extra `redis`."""

    kind: Literal["redis"] = "redis"
    url: str = Field("redis://127.0.0.1:6379/0", description="the server: redis://, rediss:// with TLS, or unix://")
    prefix: str = Field(
        "farsight:", description="of every key, so that one server can hold several endpoints' histories"
    )


HistoriesKind = Annotated[
    SqliteSettings | RedisSettings, Field(discriminator="kind"), BeforeValidator(sqlite_if_unsaid)
]


class ServeSettings(Settings):
    """The serving application. `host`, `port`, `route_prefix` and `grpc_port` belong to Serve itself: a
    Serve config file states them in its own fields.
    """

    host: str = Field("127.0.0.1", description="address that the HTTP proxy listens on; loopback unless stated")
    port: int = Field(8000, ge=1, le=65_535, description="TCP port of the HTTP proxy")
    route_prefix: str = Field("/", pattern=r"^/", description="path under which the application answers")
    grpc_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="TCP port of Serve's gRPC proxy, which listens on every address of the machine, whatever `host` "
        "says, and so wants tokens or serve.access.anyone=true; null: no gRPC",
    )
    haproxy: bool = Field(
        False,
        description="take requests through HAProxy, which comes with Ray, straight to the replicas; for a local Ray: "
        "on a cluster the nodes' environment says so (docs/serving.md)",
    )
    deadline_ms: int = Field(2_000, ge=1, description="milliseconds that a request waits if it states no deadline")
    access_log: bool = Field(
        False, description="a JSON line per request in the replica's log, in Ray's folder of logs under serve/"
    )
    access: Access = Field(default_factory=Access, description="tokens and their rate")
    limits: Limits = Field(default_factory=Limits, description="limits of a request")
    batching: Batching = Field(default_factory=Batching, description="micro-batches")
    query_cache: int = Field(
        10_000, ge=0, description="histories whose query vectors a replica keeps, those asked for last; 0 keeps none"
    )
    queueing: Queueing = Field(default_factory=Queueing, description="bounded queues")
    replicas: Replicas = Field(default_factory=Replicas, description="replicas and their scaling")
    searchers: Searchers | None = Field(
        None, description="where the index is: in processes of its own; null: in every replica, beside the model"
    )
    histories: HistoriesKind | None = Field(
        default_factory=SqliteSettings, description="where the endpoint keeps what users did; null keeps nothing"
    )
    updates: UpdatesKind | None = Field(
        default_factory=SqliteUpdatesSettings,
        description="where the endpoint keeps which items were added and removed since its release; null keeps nothing",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ServeSettings":
        # One batch runs while the next one fills; with fewer requests batches never fill.
        needed, found = 2 * self.batching.max_batch_size, self.queueing.max_in_flight
        if found < needed:
            raise ValueError(
                f"queueing.max_in_flight is {found}, expected at least {needed}: two batches of "
                f"batching.max_batch_size {self.batching.max_batch_size}"
            )
        if self.deadline_ms > self.limits.max_deadline_ms:
            raise ValueError(
                f"deadline_ms {self.deadline_ms} is above limits.max_deadline_ms {self.limits.max_deadline_ms}"
            )
        return self
