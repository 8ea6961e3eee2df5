"""CoachHooK: consecutive batch model editing with hook layers."""

from coachhook import solver
from coachhook.covariance import compute_covariance
from coachhook.edit_request import EditRequest, Probe, RequestError
from coachhook.editor import Editor
from coachhook.editors import methods
from coachhook.requests import read_requests

__version__ = "0.1.0"
__all__ = [
    "EditRequest",
    "Editor",
    "Probe",
    "RequestError",
    "compute_covariance",
    "methods",
    "read_requests",
    "solver",
]
