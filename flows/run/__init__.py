"""One run of the pipeline: parameters, workspace, graph, stages and lineage."""
