// Package lxd is a client for the image API of LXD and Incus.
package lxd
