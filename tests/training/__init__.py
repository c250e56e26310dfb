"""Tests of `mdprune_deploy.training`; a package, as file names repeat those above."""
