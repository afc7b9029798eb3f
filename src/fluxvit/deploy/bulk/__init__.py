"""Tables of many videos: ``fluxvit label`` and ``fluxvit embed``, on one machine or on a Ray cluster."""
