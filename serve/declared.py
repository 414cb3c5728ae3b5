"""An application that a Serve config file declares, as a RayService of KubeRay does, and how its release is changed.

Serve tells applications that a config declared from those that a program started, and KubeRay looks at the first kind
alone: an application that a program deploys in the place of a declared one is gone for KubeRay, which then declares its
own again. So a release is changed by declaring what is declared already, with that release.
"""

from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.schema import APIType, ServeDeploySchema

from data.errors import RecipeError
from data.settings import Recipe
from serve.app import APPLICATION


def declared_config() -> ServeDeploySchema | None:
    """What is declared on the Ray that this process is connected to; None if our application is not."""
    details = _client().get_serve_details()
    declared = {
        name: application["deployed_app_config"]
        for name, application in details["applications"].items()
        if application["source"] == APIType.DECLARATIVE and application["deployed_app_config"] is not None
    }
    if APPLICATION not in declared:
        return None
    # All of them: what is not declared again would be removed.
    return ServeDeploySchema.model_validate(
        {"applications": [*declared.values()], "target_capacity": details["target_capacity"]}
    )


def declare(config: ServeDeploySchema, release: str | None = None) -> None:
    """Declare a config, and another release in it if one is given; returns once our application answers.

    Raises:
        RuntimeError: the application did not start.
    """
    if release is not None:
        applications = [
            application.model_copy(update={"args": {**application.args, "release": release}})
            if application.name == APPLICATION
            else application
            for application in config.applications
        ]
        config = config.model_copy(update={"applications": applications})
    client = _client()
    client.deploy_apps(config)
    client._wait_for_application_running(APPLICATION)


def check_no_settings(recipe: Recipe) -> None:
    """Settings of a declared application are changed where it is declared.

    Raises:
        RecipeError: the recipe has some.
    """
    if recipe.get("serve"):
        raise RecipeError(
            f"the running application {APPLICATION!r} is declared by a Serve config file, expected no serve.* "
            "settings; change them in args.serve of that file and declare it again"
        )


def _client() -> ServeControllerClient:
    """What `ray.serve.run` uses, too; Serve has no public call for a config but that over HTTP, to the dashboard."""
    client = _get_global_client()
    assert client is not None  # it raises by itself where nothing is served
    return client
