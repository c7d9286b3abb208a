"""The chart as it is rendered: objects by kind and name, and what our policy says of them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import helm_python
import yaml

CHART: Final = Path(__file__).parents[2] / "helm" / "facilitator"
VALUES: Final = ("default", *(path.stem for path in sorted((CHART / "ci").glob("*.yaml"))))
Objects = Mapping[tuple[str, str], dict[str, Any]]


def values_of(name: str) -> dict[str, Any]:
    """One of the chart's ci/*.yaml, or nothing for `default`."""
    found: dict[str, Any] = {} if name == "default" else yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text("utf-8"))
    return found


def rendered(values: Mapping[str, Any], *, release: str = "pay", namespace: str = "payments") -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, name) to object. Raises what Helm raises; AssertionError for a name that comes twice."""
    objects: dict[tuple[str, str], dict[str, Any]] = {}
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(dict(values), name=release, namespace=namespace)
    for path, text in files.items():
        if path.endswith(".txt"):
            continue
        for item in yaml.safe_load_all(text):
            if item is not None:
                key = (item["kind"], item["metadata"]["name"])
                assert key not in objects, key
                objects[key] = item
    return objects


def of_kind(objects: Objects, kind: str) -> dict[str, dict[str, Any]]:
    """Objects of one kind by name."""
    return {name: item for (found, name), item in objects.items() if found == kind}


def pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the objects make: (owner, {metadata, spec})."""
    for (kind, name), item in objects.items():
        if kind in {"Deployment", "Job"}:
            yield f"{kind}/{name}", item["spec"]["template"]
        elif kind == "Pod":
            yield f"{kind}/{name}", item


def faults(objects: Objects) -> list[str]:
    """Where the objects break our policy. Empty: sound."""
    return [*_pod_faults(objects), *_role_faults(objects), *_hook_faults(objects), *_reference_faults(objects)]


def _pod_faults(objects: Objects) -> Iterator[str]:  # noqa: C901, PLR0912 - a list of rules
    for owner, pod in pods(objects):
        spec, security = pod["spec"], pod["spec"].get("securityContext", {})
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{owner}: mounts a token of the cluster"
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") != 10001:
            yield f"{owner}: may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{owner}: no seccomp profile"
        if spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}:
            yield f"{owner}: shares a namespace of the host"
        for volume in spec.get("volumes", ()):
            if "hostPath" in volume or (volume["name"] == "secrets" and volume["projected"]["defaultMode"] & 0o007):
                yield f"{owner}: volume {volume['name']} is open to others"
        for container in spec["containers"]:
            inner = container.get("securityContext", {})
            if inner.get("readOnlyRootFilesystem") is not True:
                yield f"{owner}: its root is writable"
            if inner.get("allowPrivilegeEscalation") is not False or inner.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{owner}: may gain privileges"
            if not {"cpu", "memory"} <= container.get("resources", {}).get("requests", {}).keys():
                yield f"{owner}: requests no resources"
            if "memory" not in container["resources"].get("limits", {}) or "cpu" in container["resources"]["limits"]:
                yield f"{owner}: wants a memory limit and no CPU limit"
            image = container["image"]
            if not isinstance(image, str) or not re.search(r":[\w.-]+$|@sha256:[0-9a-f]{64}$", image) or image.endswith(":latest"):
                yield f"{owner}: image {image!r} is not pinned"
            if any(
                re.search("KEY|PASSWORD|SECRET|TOKEN", variable["name"]) and "value" in variable for variable in container.get("env", ())
            ):
                yield f"{owner}: a secret stands in its environment"


def _role_faults(objects: Objects) -> Iterator[str]:  # noqa: C901 - a list of rules
    budgets = [item["spec"]["selector"]["matchLabels"] for item in of_kind(objects, "PodDisruptionBudget").values()]
    for name, item in of_kind(objects, "Deployment").items():
        labels, spec = item["spec"]["template"]["metadata"]["labels"], item["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        if item["spec"]["selector"]["matchLabels"] not in budgets:
            yield f"{name}: no disruption budget"
        if {constraint["topologyKey"] for constraint in spec.get("topologySpreadConstraints", ())} != {
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        }:
            yield f"{name}: replicas may share a node or a zone"
        if [container.get(probe, {}).get("httpGet", {}).get("path") for probe in ("livenessProbe", "readinessProbe", "startupProbe")] != [
            "/healthz",
            "/readyz",
            "/healthz",
        ]:
            yield f"{name}: probes"
        if "checksum/config" not in item["spec"]["template"]["metadata"].get("annotations", {}):
            yield f"{name}: a new configuration would not roll it"
        if item["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
            yield f"{name}: a roll takes replicas away first"
        if ("replicas" in item["spec"]) == (name in of_kind(objects, "HorizontalPodAutoscaler")):
            yield f"{name}: replicas are set by exactly one of Deployment and autoscaler"
        if item["spec"]["selector"]["matchLabels"].items() - labels.items():
            yield f"{name}: selects other pods than its own"
    for name, item in of_kind(objects, "HorizontalPodAutoscaler").items():
        if item["spec"]["scaleTargetRef"]["name"] not in of_kind(objects, "Deployment") or not name.endswith("-api"):
            yield f"{name}: scales what it must not"


def _hook_faults(objects: Objects) -> Iterator[str]:
    """What runs before an install may need only what exists by then: hooks of a lower weight, and what is no part of the release."""
    for (kind, name), item in objects.items():
        if "pre-install" not in item["metadata"].get("annotations", {}).get("helm.sh/hook", "") or kind != "Job":
            continue
        weight = int(item["metadata"]["annotations"]["helm.sh/hook-weight"])
        spec = item["spec"]["template"]["spec"]
        needed = [("ServiceAccount", spec["serviceAccountName"])]
        needed += [("ConfigMap", volume["configMap"]["name"]) for volume in spec["volumes"] if "configMap" in volume]
        for reference in needed:
            hook = objects.get(reference, {}).get("metadata", {}).get("annotations", {})
            if "pre-install" not in hook.get("helm.sh/hook", "") or int(hook["helm.sh/hook-weight"]) >= weight:
                yield f"{kind}/{name}: needs {reference} before it exists"


def _reference_faults(objects: Objects) -> Iterator[str]:
    """Selectors that select nothing, ports that nobody has, and names that lead nowhere."""
    made = [(pod["metadata"]["labels"], pod["spec"]) for _, pod in pods(objects)]
    for name, item in of_kind(objects, "Service").items():
        chosen = [spec for labels, spec in made if item["spec"]["selector"].items() <= labels.items()]
        ports = {port["name"] for spec in chosen for container in spec["containers"] for port in container.get("ports", ())}
        if not chosen or any(port["targetPort"] not in ports for port in item["spec"]["ports"]):
            yield f"Service/{name}: leads nowhere"
    for owner, pod in pods(objects):
        for volume in pod["spec"].get("volumes", ()):
            if volume["name"] == "config" and volume["configMap"]["name"] not in of_kind(objects, "ConfigMap"):
                yield f"{owner}: no configuration"
        account = pod["spec"].get("serviceAccountName")
        if account is not None and account not in of_kind(objects, "ServiceAccount"):
            yield f"{owner}: no service account"
    for name, item in of_kind(objects, "ServiceMonitor").items():
        wanted = item["spec"]["selector"]["matchLabels"].items()
        if not any(wanted <= service["metadata"]["labels"].items() for service in of_kind(objects, "Service").values()):
            yield f"ServiceMonitor/{name}: watches nothing"


def configurations(objects: Objects) -> dict[str, str]:
    """Every configuration of the service in the objects: ConfigMap to TOML."""
    return {
        name: item["data"]["facilitator.toml"]
        for name, item in of_kind(objects, "ConfigMap").items()
        if "facilitator.toml" in item.get("data", {})
    }
