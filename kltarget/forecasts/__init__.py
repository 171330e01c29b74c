"""Forecasts: from samples of a base model and a recipe to what training with it asks for.

``forecast`` gives, for each β, the success, pass@k and KL that the recipe's target has, with
intervals that hold what the samples leave open, and :class:`Forecast` chooses a β.
"""

from kltarget.forecasts._forecast import Forecast
from kltarget.forecasts._forecast_of import forecast

__all__ = ["Forecast", "forecast"]
