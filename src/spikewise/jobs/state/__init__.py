"""What a sort keeps on disk while it works, so that an interrupted sort continues: job, shards, log."""
