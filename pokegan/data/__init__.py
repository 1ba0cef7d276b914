"""From any source to one set of clean square pictures: the two doors through which pixels change form."""
from pokegan._lazy import lazy

__getattr__, __dir__ = lazy(__name__, {'images': 'Images audit grid load_images show_grid to_float to_image to_uint8'})
