"""One module a command of `omnirefiner`: its options (`add_parser`) and what it does."""
