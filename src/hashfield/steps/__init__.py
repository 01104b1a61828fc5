"""How one training step runs: on rays or on points, on a host or on a device, behind one protocol (`protocol.Steps`).

`rays_host` is the page to read: it shows the order of a step. `rays_device` does the same in one captured graph, and
`points_host` and `points_device` are their counterparts without rays. What both executors must agree on stands once:
the optimiser's constants and groups (`optimizers`), when and how the occupancy grid is refreshed (`occupancy`), how
many rays a step takes (`ray_budget`), where batches come from (`pixel_source`), what a checkpoint holds of a run
(`state`). `choice` decides which executor a run takes.

A task says what is learned (data, network, schedule) and knows nothing of this; only `steps` and `ops` import kernels.
"""
