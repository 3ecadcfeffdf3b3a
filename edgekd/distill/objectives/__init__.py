"""One file per objective; `edgekd.train.objective.OBJECTIVES` lists them."""
