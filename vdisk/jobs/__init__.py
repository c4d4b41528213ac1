"""The jobs: what is done with whole images.

Each job is a function with a typed result.  It reads maps, decides what has to move, and gives
the moving to :mod:`vdisk.jobs.engine`::

    map() -> plan (what to skip, zero, copy) -> engine (threads, buffers) -> the target

A job tells a ``progress(done, total)`` callback how far it is; the callback stops the job by
raising :class:`vdisk.errors.CancelledError`.  Whatever stops a job, images that were there before
stay consistent, and an image that the job made and did not finish is removed.
"""
