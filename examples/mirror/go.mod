module github.com/golxd/lxd/examples/mirror

go 1.26.0

replace github.com/golxd/lxd => ../..

require (
	github.com/golxd/lxd v0.0.0-00010101000000-000000000000
	github.com/schollz/progressbar/v3 v3.19.1
	github.com/stretchr/testify v1.12.1
	go.yaml.in/yaml/v3 v3.0.6
	golang.org/x/term v0.47.0
)
