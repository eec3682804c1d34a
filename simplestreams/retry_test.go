package simplestreams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// inMemory returns a client with the default options, whose requests a function responds to.
func inMemory(t *testing.T, respond transportFunc) *simplestreams.Client {
	t.Helper()
	client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{HTTPClient: &http.Client{Transport: respond}})
	require.NoError(t, err)

	return client
}

// response returns a response with that content.
func response(r *http.Request, status int, content io.Reader) *http.Response {
	return &http.Response{StatusCode: status, ContentLength: -1, Header: http.Header{}, Body: io.NopCloser(content), Request: r}
}

func TestRetryTimeout(t *testing.T) {
	_, _, image, _ := big(t, nil)
	for _, timeout := range []time.Duration{-1, 0, time.Minute} {
		for name, call := range map[string]func(context.Context, *simplestreams.Client) error{
			"index": func(ctx context.Context, c *simplestreams.Client) error { return c.Refresh(ctx) },
			"file": func(ctx context.Context, c *simplestreams.Client) error {
				_, err := c.Open(ctx, image, nil)
				return err
			},
		} {
			t.Run(fmt.Sprint(name, " ", timeout), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					requests := 0
					client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{
						RetryTimeout: timeout,
						HTTPClient: &http.Client{Transport: transportFunc(func(*http.Request) (*http.Response, error) {
							requests++
							return nil, errors.New("broken")
						})},
					})
					require.NoError(t, err)
					began := time.Now()
					err = call(t.Context(), client)
					require.ErrorContains(t, err, "broken")
					var failed *simplestreams.Error
					require.ErrorAs(t, err, &failed)
					require.True(t, failed.Transient())
					if timeout < 0 {
						require.Equal(t, 1, requests)
						require.Zero(t, time.Since(began))
						return
					}
					want := timeout
					if want == 0 {
						want = 30 * time.Second
					}
					require.Greater(t, requests, 5)
					require.Equal(t, want, time.Since(began))
				})
			})
		}
	}
}

func TestStatusesThatAreRetried(t *testing.T) {
	_, _, image, _ := big(t, nil)
	for status, transient := range map[int]bool{429: true, 502: true, 503: true, 504: true, 400: false, 403: false, 404: false, 410: false, 500: false, 501: false} {
		t.Run(fmt.Sprintf("status %d", status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				requests := 0
				client := inMemory(t, func(r *http.Request) (*http.Response, error) {
					requests++
					return response(r, status, http.NoBody), nil
				})
				for _, call := range []func() error{
					func() error { return client.Refresh(t.Context()) },
					func() error { _, err := client.Open(t.Context(), image, nil); return err },
				} {
					requests = 0
					err := call()
					var failed *simplestreams.Error
					require.ErrorAs(t, err, &failed)
					require.Equal(t, status, failed.StatusCode)
					require.Equal(t, transient, failed.Transient())
					require.Equal(t, transient, requests > 1)
					_, asked := failed.RetryAfter()
					require.False(t, asked)
				}
			})
		})
	}
}

func TestTransientErrors(t *testing.T) {
	for want, causes := range map[bool][]error{
		true:  {io.ErrUnexpectedEOF, simplestreams.ErrStalled, &simplestreams.Error{StatusCode: 503}},
		false: {simplestreams.ErrBadData, simplestreams.ErrTooLarge, simplestreams.ErrInsecure, simplestreams.ErrRedirect, simplestreams.ErrNotFound, context.Canceled, &net.DNSError{IsNotFound: true}, &simplestreams.Error{StatusCode: 403}},
	} {
		for _, cause := range causes {
			err := &simplestreams.Error{Err: fmt.Errorf("wrapped: %w", cause)}
			require.Equal(t, want, err.Transient(), cause)
		}
	}
}

func TestLongRetryAfterIsAnErrorAtOnce(t *testing.T) {
	_, _, image, _ := big(t, nil)
	for name, call := range map[string]func(context.Context, *simplestreams.Client) error{
		"index": func(ctx context.Context, c *simplestreams.Client) error { return c.Refresh(ctx) },
		"file": func(ctx context.Context, c *simplestreams.Client) error {
			_, err := c.Open(ctx, image, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refused := 0
				client := inMemory(t, func(r *http.Request) (*http.Response, error) {
					refused++
					busy := response(r, 503, http.NoBody)
					busy.Header.Set("Retry-After", "86400")
					return busy, nil
				})
				began := time.Now()
				err := call(t.Context(), client)
				var failed *simplestreams.Error
				require.ErrorAs(t, err, &failed)
				require.Equal(t, 503, failed.StatusCode)
				require.Zero(t, time.Since(began))
				require.Equal(t, 1, refused)
				after, asked := failed.RetryAfter()
				require.True(t, asked)
				require.Equal(t, 24*time.Hour, after)
			})
		})
	}
}

func TestSizeStaysUnknown(t *testing.T) {
	server, client, image, want := big(t, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
	image.Files[1].Size = 0
	for name, refuse := range map[string]http.HandlerFunc{
		"403":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"405":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"501":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotImplemented) },
		"length 0": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") },
		"404":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"503":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"break":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"204":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
	} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, cut %v", name, cut), func(t *testing.T) {
				once := streamstest.Times(1, streamstest.Cut(1000))
				server.Fault(bigRoot, func(s *streamstest.Server, next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						switch {
						case r.Method == http.MethodHead:
							refuse(w, r)
						case cut:
							once(s, streamstest.NoLength()(s, next)).ServeHTTP(w, r)
						default:
							next.ServeHTTP(w, r)
						}
					})
				})
				d, err := client.Open(t.Context(), image, nil)
				require.NoError(t, err)
				require.EqualValues(t, -1, d.Size)
				require.EqualValues(t, -1, d.Rootfs.Size())
				require.NoError(t, d.Close())
				require.Equal(t, want, readAll(t, client, image))
			})
		}
	}
}

func TestRedirectsEnd(t *testing.T) {
	server, client, image, want := big(t, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
	for n := range 11 {
		server.Set(fmt.Sprint("r", n), []byte("replaced by the fault"))
		server.Fault(fmt.Sprint("r", n), streamstest.Redirect(fmt.Sprint(server.URL, "/r", n+1)))
	}
	server.Set("r9", want[700:])
	server.Fault("r9", nil)
	server.Fault(bigRoot, streamstest.Redirect(server.URL+"/r0"))
	require.Equal(t, want, readAll(t, client, image), "ten redirects")

	server.Set("r10", want[700:])
	server.Fault("r10", nil)
	server.Fault("r9", streamstest.Redirect(server.URL+"/r10"))
	server.Requests()
	_, err := download(t.Context(), client, image, nil)
	require.ErrorIs(t, err, simplestreams.ErrRedirect)
	require.Len(t, server.Requests(), 12, "the metadata, the file and ten redirects")
}

func TestAFileIsNotAskedForWithoutEnd(t *testing.T) {
	_, _, image, want := big(t, nil)
	for name, ranges := range map[string]bool{"ranges": true, "no ranges": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				requests := 0
				client := inMemory(t, func(r *http.Request) (*http.Response, error) {
					if strings.HasSuffix(r.URL.Path, bigMeta) {
						return response(r, 200, bytes.NewReader(want[:700])), nil
					}
					requests++
					require.Less(t, requests, 1000)
					root, from := want[700:], requests-1
					cut := response(r, 200, io.MultiReader(bytes.NewReader(root[:requests]), iotest.ErrReader(errors.New("cut"))))
					if from > 0 && ranges {
						cut.StatusCode = 206
						cut.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(root)-1, len(root)))
						cut.Body = io.NopCloser(io.MultiReader(bytes.NewReader(root[from:requests]), iotest.ErrReader(errors.New("cut"))))
					}
					return cut, nil
				})
				content, err := download(t.Context(), client, image, nil)
				require.ErrorContains(t, err, fmt.Sprintf("cut after %d bytes", requests))
				require.ErrorContains(t, err, bigRoot)
				require.Less(t, requests, 30, "the default is to retry for 30 seconds, and no response brings 4 KiB")
				require.Len(t, content, 700+requests)
			})
		})
	}
}

func TestAnnouncedLengthIsBounded(t *testing.T) {
	read := false
	client := inMemory(t, func(r *http.Request) (*http.Response, error) {
		large := response(r, 200, iotest.ErrReader(nil))
		large.ContentLength = 128<<20 + 1
		large.Body = readNotifier(func() { read = true })
		return large, nil
	})
	_, err := client.Resolve(t.Context(), "alpine", nil)
	require.ErrorIs(t, err, simplestreams.ErrTooLarge)
	require.ErrorContains(t, err, "134217729 bytes, the limit is 134217728")
	require.False(t, read, "refused before a byte is read")
}

// readNotifier is an empty body that reports that it was read.
type readNotifier func()

func (f readNotifier) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

func (readNotifier) Close() error { return nil }

func TestCacheKeepsNoCutFile(t *testing.T) {
	cache := simplestreams.DirCache(t.TempDir())
	require.NoError(t, cache.Store("key", strings.NewReader("whole")))
	for _, key := range []string{"key", "new"} {
		err := cache.Store(key, io.MultiReader(strings.NewReader("cut"), iotest.ErrReader(io.ErrUnexpectedEOF)))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	}
	file, err := cache.Open("key")
	require.NoError(t, err)
	defer file.Close()
	content, err := io.ReadAll(file)
	require.NoError(t, err)
	require.Equal(t, "whole", string(content))
	_, err = cache.Open("new")
	require.Error(t, err)
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	_, _, image, want := big(t, nil)
	for name, root := range map[string]transportFunc{
		"a request": func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		},
		"a pause": func(r *http.Request) (*http.Response, error) {
			busy := response(r, 503, http.NoBody)
			busy.Header.Set("Retry-After", "500")
			return busy, nil
		},
		"a body": func(r *http.Request) (*http.Response, error) {
			return response(r, 200, readerFunc(func([]byte) (int, error) {
				<-r.Context().Done()
				return 0, r.Context().Err()
			})), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := inMemory(t, func(r *http.Request) (*http.Response, error) {
					if strings.HasSuffix(r.URL.Path, bigMeta) {
						return response(r, 200, bytes.NewReader(want[:700])), nil
					}
					return root(r)
				})
				d, err := client.Open(t.Context(), image, nil)
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, d.Metadata)
				require.NoError(t, err)
				ended := make(chan error, 1)
				go func() {
					_, err := d.Rootfs.Read(make([]byte, 1))
					ended <- err
				}()
				synctest.Wait()
				began := time.Now()
				require.NoError(t, d.Close())
				require.ErrorIs(t, <-ended, context.Canceled)
				require.Zero(t, time.Since(began))
			})
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestStallTimeout(t *testing.T) {
	_, _, image, _ := big(t, nil)
	for timeout, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: time.Second, -1: time.Hour} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{
					StallTimeout: timeout, RetryTimeout: -1,
					HTTPClient: &http.Client{Transport: transportFunc(func(r *http.Request) (*http.Response, error) {
						<-r.Context().Done()
						return nil, r.Context().Err()
					})},
				})
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				for _, call := range []func() error{
					func() error { return client.Refresh(ctx) },
					func() error { _, err := client.Open(ctx, image, nil); return err },
				} {
					began := time.Now()
					err := call()
					if timeout < 0 {
						require.ErrorIs(t, err, context.DeadlineExceeded)
						require.NotErrorIs(t, err, simplestreams.ErrStalled)
						break
					}
					require.ErrorIs(t, err, simplestreams.ErrStalled)
					require.Equal(t, want, time.Since(began))
				}
			})
		})
	}
}
