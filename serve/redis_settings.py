"""Where a Redis server is; free of torch, ray and redis."""

from urllib.parse import urlsplit

from pydantic import Field, model_validator

from data.settings import Settings


class RedisServer(Settings):
    """The server of a store in Redis."""

    url: str = Field("redis://127.0.0.1:6379/0", description="the server: redis://, rediss:// with TLS, or unix://")
    password_file: str | None = Field(
        None,
        description="file with the server's password, such as a mounted secret, read for every new connection; "
        "null: what the url says",
    )

    @model_validator(mode="after")
    def _one_password(self) -> "RedisServer":
        if self.password_file is not None and urlsplit(self.url).password is not None:
            raise ValueError("found a password in url and a password_file, expected one of them; take it out of url")
        return self
