"""Laws of time; see `ornstein.schedules.base`."""

from ornstein.schedules.base import Level, Schedule
from ornstein.schedules.closed_form import EDM, CosineVP, GeometricVE, LinearVP, RectifiedFlow, SubVP
from ornstein.schedules.custom import FromAlphaSigma, FromSDE
from ornstein.schedules.table import TableSchedule

__all__ = [
    "EDM",
    "CosineVP",
    "FromAlphaSigma",
    "FromSDE",
    "GeometricVE",
    "Level",
    "LinearVP",
    "RectifiedFlow",
    "Schedule",
    "SubVP",
    "TableSchedule",
]
