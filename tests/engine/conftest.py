import paddle_vheat.data.image_file as im
if not hasattr(im,"has_orientation"): im.has_orientation = lambda p: False
