package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/golxd/lxd"
)

// metrics are what -listen serves.
type metrics struct {
	registry    *prometheus.Registry
	up          *prometheus.GaugeVec
	transfers   *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	seconds     *prometheus.CounterVec
	failures    *prometheus.CounterVec
	lastSuccess *prometheus.GaugeVec
}

func newMetrics(c *controller) *metrics {
	registry := prometheus.NewRegistry()
	with := promauto.With(registry)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return with.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	for _, s := range c.Servers {
		with.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fleet_aliases_in_step", Help: "Aliases that have the wanted image, as the server's events say.",
			ConstLabels: prometheus.Labels{"server": s.Name},
		}, func() float64 { return float64(c.inStep(s)) })
	}
	with.NewGauge(prometheus.GaugeOpts{Name: "fleet_aliases", Help: "Aliases that each server is to have."}).Set(float64(len(c.Aliases)))
	return &metrics{
		registry: registry,
		up: with.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fleet_server_up", Help: "Whether the server responded, and trusted this client, in the last pass.",
		}, []string{"server"}),
		transfers: counter("fleet_transfers_total", "Images that the server received, by mode.", "server", "mode"),
		bytes:     counter("fleet_transfer_bytes_total", "Bytes of these images.", "server"),
		seconds:   counter("fleet_transfer_seconds_total", "Seconds that their transfers took.", "server"),
		failures:  counter("fleet_failures_total", "Failures by server and step: connect, ensure, distribute, prune or watch.", "server", "step"),
		lastSuccess: with.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fleet_last_success_timestamp_seconds", Help: "When a pass last brought the alias to all servers.",
		}, []string{"alias"}),
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// transferred counts a transfer.
func (m *metrics) transferred(s *server, d lxd.Delivery) {
	m.transfers.WithLabelValues(s.Name, string(d.Mode)).Inc()
	m.bytes.WithLabelValues(s.Name).Add(float64(d.Bytes))
	m.seconds.WithLabelValues(s.Name).Add(d.Took.Seconds())
}
