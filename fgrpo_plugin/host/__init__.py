"""Everything that imports verl: settings/ before Ray, driver/ once a step, worker/ per micro-batch; see register.py."""
