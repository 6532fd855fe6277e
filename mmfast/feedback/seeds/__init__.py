"""The files of the published pipelines, read as answers and written from the folders of stages: a module a seed."""
