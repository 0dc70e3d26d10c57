"""The status of a VirtualMachineBackup, in each generation.

Owns: conditions and their reasons, where URLs and certificates are, and other differences between generations. It
changes the `status` that it is given, nothing else.
"""

from .objects import now

IN_PROGRESS = "Backup is in progress"
PREPARING = "Backup export is being initialized"
INITIATED = "Backup export has been initiated, waiting for export links"
READY = "Backup export is ready to pull"
ABORTING = "Backup is aborting"
COMPLETED = "Successfully completed VirtualMachineBackup"
WARNED = "Completed VirtualMachineBackup, warning: {}"
FAILED = "Backup has failed: {}"


def _set(status, condition):
    """Set a condition as meta.SetStatusCondition does: the time is that of the last change of `status`, not of the
    text."""
    conditions = status.setdefault("conditions", [])
    old = next((each for each in conditions if each["type"] == condition["type"]), None)
    same = old is not None and old["status"] == condition["status"]
    condition["lastTransitionTime"] = old["lastTransitionTime"] if same else now()
    if old is None:
        conditions.append(condition)
    else:
        old.update(condition)


def is_true(status, kind):
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", []))


def _links(status, link):
    urls = {each["volumeName"]: (each["mapEndpoint"], each["dataEndpoint"]) for each in link["volumes"]}
    return status["type"], link["cert"], urls


class V18:
    """Own types of conditions, whose reason is a text for people; a failure is `Done`, too."""

    name, release = "v1.8", "v1.8.4"
    merged = False  # an incremental map tells the dirty bitmap alone
    confuses = False  # whether a second backup, of another source, takes the first one's job for its own

    def _conditions(self, status, reason, **states):
        for kind, state in states.items():
            _set(status, {"type": kind, "status": str(state), "lastProbeTime": None, "reason": reason})

    def initializing(self, status, reason):
        self._conditions(status, reason, Initializing=True, Progressing=False)

    def started(self, status, backup_type):
        status["conditions"] = [each for each in status.get("conditions", []) if each["type"] != "Initializing"]
        self._conditions(status, IN_PROGRESS, Progressing=True, Done=False)
        status["type"] = backup_type

    def preparing(self, status):
        self._conditions(status, PREPARING, Progressing=True, ExportInitiated=False, ExportReady=False)

    def included(self, status, targets, checkpoint, quiesced):
        status["includedVolumes"] = self.volumes(targets)
        status["checkpointName"] = checkpoint

    def volumes(self, targets):
        return [{"volumeName": name, "diskTarget": target} for name, target in targets.items()]

    def export_sent(self, status, uid):
        self._conditions(status, INITIATED, Progressing=True, ExportInitiated=True, ExportReady=False, Done=False)

    def ready(self, status, internal, external):
        self._conditions(status, READY, Progressing=True, ExportInitiated=True, ExportReady=True, Done=False)
        self._endpoints(status, external or internal)

    def _endpoints(self, status, link):
        status["endpointCert"] = link["cert"]
        urls = {volume["volumeName"]: volume for volume in link["volumes"]}
        status["includedVolumes"] = [{**volume, **urls[volume["volumeName"]]} for volume in status["includedVolumes"]]

    def aborting(self, status, reason):
        self._conditions(status, reason, Progressing=True, Aborting=True)

    def completed(self, status, targets, checkpoint, warning):
        self._done(status, WARNED.format(warning) if warning else COMPLETED)
        status["includedVolumes"] = self.volumes(targets)
        status.update({"checkpointName": checkpoint} if checkpoint else {})

    def failed(self, status, reason, message):
        self._done(status, FAILED.format(message))

    def _done(self, status, reason):
        self._conditions(status, reason, Progressing=False, Done=True)
        if is_true(status, "Aborting"):
            self._conditions(status, reason, Aborting=False)

    def is_ready(self, status):
        return is_true(status, "ExportReady")

    def is_terminal(self, status):
        return is_true(status, "Done")

    def links(self, status):
        """Return (type, certificate, {volume: (map, data)}) of a status that is ready."""
        return _links(status, {"cert": status["endpointCert"], "volumes": status["includedVolumes"]})


class V19(V18):
    """metav1.Condition, with reasons for programs."""

    name, release = "v1.9", "v1.9.0"
    merged = True
    confuses = True
    quiesced = {
        "Succeeded": ("True", "Guest filesystem was successfully quiesced"),
        "Failed": ("False", "Guest filesystem quiesce failed"),
        "Skipped": ("False", "Guest filesystem quiesce was skipped"),
    }

    def _condition(self, status, kind, state, reason, message):
        _set(status, {"type": kind, "status": str(state), "reason": reason, "message": message})

    def _progress(self, status, reason, message):
        self._condition(status, "Progressing", True, reason, message)

    def initializing(self, status, reason):
        self._progress(status, "Initializing", reason)

    def started(self, status, backup_type):
        self._progress(status, "Initiated", IN_PROGRESS)
        status["type"] = backup_type

    def preparing(self, status):
        self._progress(status, "PreparingExport", PREPARING)
        status.pop("endpointCert", None)  # but the URLs of an export that is gone stay

    def included(self, status, targets, checkpoint, quiesced):
        super().included(status, targets, checkpoint, quiesced)
        state, message = self.quiesced[quiesced]
        self._condition(status, "Quiesced", state, f"Quiesce{quiesced}", message)

    def export_sent(self, status, uid):
        status["exportUID"] = uid

    def ready(self, status, internal, external):
        self._progress(status, "ExportReady", READY)
        self._endpoints(status, external or internal)

    def aborting(self, status, reason):
        self._progress(status, "Aborting", reason)

    def completed(self, status, targets, checkpoint, warning):
        reason = "CompletedWithWarning" if warning else "Completed"
        self._end(status, "Complete", reason, WARNED.format(warning) if warning else COMPLETED)
        status["includedVolumes"] = self.volumes(targets)
        status.update({"checkpointName": checkpoint} if checkpoint else {})

    def failed(self, status, reason, message):
        self._end(status, "Failed", reason, FAILED.format(message))

    def _end(self, status, kind, reason, message):
        self._condition(status, kind, True, reason, message)
        self._condition(status, "Progressing", False, reason, message)

    def is_ready(self, status):
        conditions = status.get("conditions", [])
        return any(each["reason"] == "ExportReady" and each["status"] == "True" for each in conditions)

    def is_terminal(self, status):
        return is_true(status, "Complete") or is_true(status, "Failed")


class Later(V19):
    """main after August 2026: URLs and certificates are in `links`, and the export is no longer referred to by its
    uid."""

    name, release = "main", "v1.10.0-alpha.0"

    def volumes(self, targets):
        return [{"volumeName": name} for name in targets]

    def preparing(self, status):
        super().preparing(status)
        status.pop("links", None)

    def export_sent(self, status, uid):
        """Report nothing."""

    def ready(self, status, internal, external):
        self._progress(status, "ExportReady", READY)
        status["links"] = {"internal": internal, **({"external": external} if external else {})}

    def links(self, status):
        return _links(status, status["links"].get("external") or status["links"]["internal"])


GENERATIONS = {each.name: each() for each in (V18, V19, Later)}
