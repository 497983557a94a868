"""A search in five lines of Python; the same command goes on where it was stopped."""

from autopeft import Study, spaces, tasks

task = tasks.demo()  # your own: tasks.load("reviews.csv", text="review", label="stars")
study = Study.create("runs/five-lines", backbone="demo", task=task, space=spaces.autopeft(lora=True), trials=24)
study.run(workers=2)
adapter = study.front.pick(max_parameters="0.5%").train(seeds=3)
adapter.save("adapters/five-lines")
