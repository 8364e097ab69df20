"""One sort from file to result, with resume, shards and a cluster; many recordings; pretraining."""
