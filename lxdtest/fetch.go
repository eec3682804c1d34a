package lxdtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// httpClient returns a client for requests to other servers. If certificate, a
// PEM certificate, is not empty, the client trusts only a server that has this
// certificate, whatever its names, or one that was signed by it.
func (s *Server) httpClient(certificate string) (*http.Client, error) {
	config := &tls.Config{RootCAs: s.opts.RootCAs, MinVersion: tls.VersionTLS12}
	if certificate != "" {
		block, _ := pem.Decode([]byte(certificate))
		if block == nil {
			return nil, daemonErrorf("Invalid certificate")
		}
		pinned, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AddCert(pinned)
		config.RootCAs = pool
		config.InsecureSkipVerify = true // VerifyConnection verifies instead.
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if state.PeerCertificates[0].Equal(pinned) {
				return nil
			}
			intermediates := x509.NewCertPool()
			for _, cert := range state.PeerCertificates[1:] {
				intermediates.AddCert(cert)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, DNSName: state.ServerName})
			return err
		}
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   config,
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := s.opts.Dial(ctx, network, addr)
			if err != nil {
				return nil, daemonErrorf("Unable to connect to: %s ([%w])", addr, err)
			}
			return s.newLinkConn(c), nil
		},
	}}, nil
}

// userAgent returns the User-Agent of the server's own requests.
func (s *Server) userAgent() string {
	return s.traits.familyName() + " " + s.traits.version + " (Linux; x86_64)"
}

// request sends a request to another server.
func (s *Server) request(ctx context.Context, client *http.Client, method, target string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", s.userAgent())
	return client.Do(req)
}

// lockDownload waits until no other operation downloads the image. The daemons do so
// too: the second operation then finds the image (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func (s *Server) lockDownload(ctx context.Context, fingerprint string) (unlock func(), err error) {
	for {
		s.mu.Lock()
		other := s.downloads[fingerprint]
		if other == nil {
			done := make(chan struct{})
			s.downloads[fingerprint] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.downloads, fingerprint)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fetch downloads a file and spools it.
func (s *Server) fetch(ctx context.Context, op *operation, client *http.Client, target, what string) (*upload, error) {
	s.allowCancel(op)
	res, err := s.request(ctx, client, http.MethodGet, target, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, daemonErrorf("Unable to fetch %s: %s", target, res.Status)
	}
	return s.receiveUnified(s.trackProgress(op, what, res))
}

// allowCancel makes an operation cancellable. In the daemons a download is, once
// it has begun.
func (s *Server) allowCancel(op *operation) {
	if op == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	op.mayCancel = true
}

// trackProgress returns the body of a download and reports its progress in the
// operation, at every 10 % if the length is known.
func (s *Server) trackProgress(op *operation, what string, res *http.Response) io.Reader {
	return &progressReader{Reader: res.Body, server: s, op: op, what: what, total: res.ContentLength, begin: time.Now()}
}

// progressReader reports the progress of a download.
type progressReader struct {
	io.Reader
	server      *Server
	op          *operation
	what        string
	done, total int64
	tenths      int64
	begin       time.Time
}

// Read reads from the body and reports each 10 %.
func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.done += int64(n)
	if p.total <= 0 {
		return n, err
	}
	if tenths := p.done * 10 / p.total; tenths > p.tenths {
		p.tenths = tenths
		p.server.setProgress(p.op, p.what, tenths*10, float64(p.done)/max(time.Since(p.begin).Seconds(), 1e-6))
	}
	return n, err
}

// setProgress sets the progress of an operation, in the daemons' format.
func (s *Server) setProgress(op *operation, what string, percent int64, speed float64) {
	text := fmt.Sprintf("%d%% (%.2fMB/s)", percent, speed/1e6)
	if what != "" {
		text = what + ": " + text
	}
	s.setMetadata(op, map[string]any{"download_progress": text})
}

// getJSON decodes the metadata of another server's response to GET.
func (s *Server) getJSON(ctx context.Context, client *http.Client, at string, value any) error {
	res, err := s.request(ctx, client, http.MethodGet, at, nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return remoteError(res)
	}
	return readJSON(&http.Request{Body: res.Body}, &struct {
		Metadata any `json:"metadata"`
	}{value})
}

// remoteError returns the error in another server's response.
func remoteError(res *http.Response) error {
	var response envelope
	if err := readJSON(&http.Request{Body: res.Body}, &response); err != nil || response.Error == "" {
		return errors.New(res.Status)
	}
	return statusErrorf(response.ErrorCode, "%s", response.Error)
}
