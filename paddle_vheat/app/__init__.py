"""A page in the browser: drop a picture, see the prediction; click a place, see heat spread from it.

``python -m paddle_vheat.app --config C --model_path W`` or ``--exported FOLDER``. Needs Flask (extra ``app``).
``session`` and ``heat`` know nothing of the web, ``server`` is all that does.
"""
