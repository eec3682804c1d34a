package rangeread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
)

var errCut = errors.New("the line broke")

// server has content, and breaks responses as its script says.
type server struct {
	content []byte
	etag    string
	date    string
	noRange bool // it ignores the Range header
	noSize  bool // it sends in chunks

	// script has one entry for each request; after the last, all goes well.
	script   []step
	requests []http.Header
}

type step struct {
	err    error                // in place of a response
	after  int                  // bytes before the body breaks with bodyErr
	broken error                // of the body
	stall  bool                 // the body sends nothing more after that
	change func(*http.Response) // of the response
}

func (s *server) open(ctx context.Context, header http.Header) (*http.Response, error) {
	n := len(s.requests)
	s.requests = append(s.requests, header)
	var step step
	if n < len(s.script) {
		step = s.script[n]
	}
	if step.err != nil {
		return nil, step.err
	}
	part, res := s.content, &http.Response{StatusCode: http.StatusOK, Header: http.Header{}}
	if spec := header.Get("Range"); spec != "" && !s.noRange {
		first, last, _ := strings.Cut(strings.TrimPrefix(spec, "bytes="), "-")
		from, _ := strconv.Atoi(first)
		to := len(s.content) - 1
		if last != "" {
			to, _ = strconv.Atoi(last)
		}
		part, res.StatusCode = s.content[from:to+1], http.StatusPartialContent
		res.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(s.content)))
	}
	res.ContentLength = int64(len(part))
	if s.noSize {
		res.ContentLength = -1
	}
	if s.etag != "" {
		res.Header.Set("ETag", s.etag)
	}
	if s.date != "" {
		res.Header.Set("Last-Modified", s.date)
	}
	if step.change != nil {
		step.change(res)
	}
	var body io.Reader = bytes.NewReader(part)
	if step.broken != nil || step.stall {
		body = io.MultiReader(bytes.NewReader(part[:step.after]), failing{ctx, step})
	}
	res.Body = io.NopCloser(body)
	return res, nil
}

type failing struct {
	ctx context.Context
	step
}

func (f failing) Read([]byte) (int, error) {
	if f.stall {
		<-f.ctx.Done()
		return 0, f.ctx.Err()
	}
	return 0, f.broken
}

// options retry at once and for long.
func options(s *server) Options {
	return Options{Open: s.open, Size: -1, Verified: true, Retry: retry.Policy{Timeout: time.Hour}}
}

func readAll(ctx context.Context, o Options) (string, error) {
	r, err := Start(ctx, o)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(r)
	return string(data), errors.Join(err, r.Close())
}

func ranges(s *server) (list []string) {
	for _, h := range s.requests {
		list = append(list, h.Get("Range"))
	}
	return list
}

func TestResumes(t *testing.T) {
	t.Parallel()
	const text = "the whole content"
	cut := func(after int) step { return step{after: after, broken: errCut} }
	for name, c := range map[string]struct {
		script []step
		opts   func(*Options)
		server func(*server)
		ranges []string
		want   string
	}{
		"no cut": {ranges: []string{""}},
		"cuts":   {script: []step{cut(3), cut(0), cut(4)}, ranges: []string{"", "bytes=3-", "bytes=3-", "bytes=7-"}},
		"cut before a byte": {
			script: []step{cut(0)}, ranges: []string{"", ""},
		},
		"cut behind the last byte": {script: []step{cut(len(text))}, ranges: []string{""}},
		"an early end":             {script: []step{{after: 5, broken: io.EOF}}, ranges: []string{"", "bytes=5-"}},
		"no connection":            {script: []step{{err: errCut}, cut(2), {err: errCut}}, ranges: []string{"", "", "bytes=2-", "bytes=2-"}},
		"from an offset": {
			opts: func(o *Options) { o.From = 4 }, script: []step{cut(1)}, ranges: []string{"bytes=4-", "bytes=5-"}, want: text[4:],
		},
		"a part": {
			opts: func(o *Options) { o.From, o.To = 4, 9 }, script: []step{cut(1)}, ranges: []string{"bytes=4-8", "bytes=5-8"}, want: text[4:9],
		},
		"ranges ignored": {
			opts: func(o *Options) { o.ReadOver = true }, server: func(s *server) { s.noRange = true },
			script: []step{cut(6), cut(3), cut(8)}, ranges: []string{"", "bytes=6-", "bytes=6-", "bytes=8-"},
		},
		"other dates are no matter where a hash decides": {
			server: func(s *server) { s.etag = `"a"` }, ranges: []string{"", "bytes=2-"},
			script: []step{cut(2), {change: func(r *http.Response) { r.Header.Set("ETag", `"b"`) }}},
		},
		"known size, sent in chunks": {
			opts: func(o *Options) { o.Size = int64(len(text)) }, server: func(s *server) { s.noSize = true },
			script: []step{cut(6)}, ranges: []string{"", "bytes=6-"},
		},
		"unknown size, sent in chunks": {
			server: func(s *server) { s.noSize = true },
			script: []step{cut(6), cut(3)}, ranges: []string{"", "bytes=6-", "bytes=9-"},
		},
		"unknown size, sent in chunks, ranges ignored": {
			opts: func(o *Options) { o.ReadOver = true }, server: func(s *server) { s.noRange, s.noSize = true, true },
			script: []step{cut(6), cut(8)}, ranges: []string{"", "bytes=6-", "bytes=8-"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &server{content: []byte(text), script: c.script}
				if c.server != nil {
					c.server(s)
				}
				o := options(s)
				if c.opts != nil {
					c.opts(&o)
				}
				got, err := readAll(t.Context(), o)
				require.NoError(t, err)
				if c.want == "" {
					c.want = text
				}
				require.Equal(t, c.want, got)
				require.Equal(t, c.ranges, ranges(s))
			})
		})
	}
}

func TestValidators(t *testing.T) {
	t.Parallel()
	cut := []step{{after: 4, broken: errCut}}
	for name, c := range map[string]struct {
		etag, date, ifRange string
		resumes             bool
	}{
		"none": {},
		"etag": {etag: `"a"`, date: "Mon, 02 Jan 2006 15:04:05 GMT", ifRange: `"a"`, resumes: true},
		"weak": {etag: `W/"a"`},
		"weak and modified": {
			etag: `W/"a"`, date: "Mon, 02 Jan 2006 15:04:05 GMT", ifRange: "Mon, 02 Jan 2006 15:04:05 GMT", resumes: true,
		},
		"modified": {date: "Mon, 02 Jan 2006 15:04:05 GMT", ifRange: "Mon, 02 Jan 2006 15:04:05 GMT", resumes: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &server{content: []byte("content"), etag: c.etag, date: c.date, script: cut}
				o := options(s)
				o.Verified = false
				got, err := readAll(t.Context(), o)
				if !c.resumes {
					require.ErrorIs(t, err, errCut)
					require.Len(t, s.requests, 1)
					return
				}
				require.NoError(t, err)
				require.Equal(t, "content", got)
				require.Equal(t, c.ifRange, s.requests[1].Get("If-Range"))

				s = &server{content: []byte("content"), etag: c.etag, date: c.date}
				s.script = append(cut, step{change: func(r *http.Response) { r.Header.Set("ETag", "other") }})
				o.Open = s.open
				_, err = readAll(t.Context(), o)
				require.ErrorIs(t, err, ErrChanged)
				require.ErrorIs(t, err, errCut)
			})
		})
	}
}

// TestOtherDate: it is another content, whatever its ETag.
func TestOtherDate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{content: []byte("content"), etag: `"a"`, date: "Mon, 02 Jan 2006 15:04:05 GMT", script: []step{
			{after: 4, broken: errCut}, {change: func(r *http.Response) { r.Header.Set("Last-Modified", "Tue, 03 Jan 2006 15:04:05 GMT") }},
		}}
		o := options(s)
		o.Verified = false
		_, err := readAll(t.Context(), o)
		require.ErrorIs(t, err, ErrChanged)
	})
}

// closing counts the bodies that are open.
type closing struct {
	io.ReadCloser
	open *int
}

func (c closing) Close() error {
	*c.open--
	return c.ReadCloser.Close()
}

// TestFreesWhatBroke: of a request that failed, neither the context nor the body is
// kept while the transfer goes on.
func TestFreesWhatBroke(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{content: []byte("content"), script: []step{{after: 4, broken: errCut}, {err: errCut}}}
		o := options(s)
		var contexts []context.Context
		open := 0
		o.Open = func(ctx context.Context, header http.Header) (*http.Response, error) {
			contexts = append(contexts, ctx)
			res, err := s.open(ctx, header)
			if err == nil {
				open++
				res.Body = closing{res.Body, &open}
			}
			return res, err
		}
		r, err := Start(t.Context(), o)
		require.NoError(t, err)
		_, err = io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, 1, open)
		require.Len(t, contexts, 3)
		require.Error(t, contexts[0].Err())
		require.Error(t, contexts[1].Err())
		require.NoError(t, contexts[2].Err())
		require.NoError(t, r.Close())
		require.Zero(t, open)
	})
}

func TestRefusesOtherContent(t *testing.T) {
	t.Parallel()
	header := func(value string) func(*http.Response) {
		return func(r *http.Response) { r.Header.Set("Content-Range", value) }
	}
	cut := step{after: 4, broken: errCut}
	for name, c := range map[string]struct {
		script []step
		opts   func(*Options)
		want   error
	}{
		"another range":   {script: []step{cut, {change: header("bytes 3-6/7")}}, want: ErrRange},
		"a shorter range": {script: []step{cut, {change: header("bytes 4-5/7")}}, want: ErrRange},
		"another length":  {script: []step{cut, {change: header("bytes 4-7/8")}}, want: ErrChanged},
		"no range":        {script: []step{cut, {change: header("nonsense")}}, want: ErrRange},
		"a range of what": {script: []step{
			{after: 4, broken: errCut, change: func(r *http.Response) { r.ContentLength = -1 }}, {change: header("bytes 4-5/*")},
		}, want: ErrRange},
		"a part of all":     {script: []step{{change: func(r *http.Response) { r.StatusCode = http.StatusPartialContent }}}, want: ErrRange},
		"range ignored":     {script: []step{cut, {change: func(r *http.Response) { r.StatusCode = http.StatusOK }}}, want: ErrNoRange},
		"not the size":      {opts: func(o *Options) { o.Size = 8 }, want: ErrChanged},
		"longer, in chunks": {opts: func(o *Options) { o.Size = 6 }, script: []step{{change: func(r *http.Response) { r.ContentLength = -1 }}}, want: ErrChanged},
		"shorter than what was read, for good": {
			opts: func(o *Options) { o.ReadOver, o.Retry.Timeout = true, time.Second }, want: io.ErrUnexpectedEOF,
			script: append([]step{cut}, slices.Repeat([]step{{change: func(r *http.Response) {
				r.StatusCode, r.ContentLength, r.Body = http.StatusOK, -1, io.NopCloser(strings.NewReader("con"))
			}}}, 100)...),
		},
		"shorter than its size, for good": {
			opts: func(o *Options) { o.Retry.Timeout = -1 }, script: []step{{after: 2, broken: io.EOF}}, want: io.ErrUnexpectedEOF,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &server{content: []byte("content"), script: c.script}
				o := options(s)
				if c.opts != nil {
					c.opts(&o)
				}
				_, err := readAll(t.Context(), o)
				require.ErrorIs(t, err, c.want)
				require.NotErrorIs(t, err, io.EOF)
			})
		})
	}
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	t.Run("with too few bytes of each response", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &server{content: make([]byte, 1<<20), script: slices.Repeat([]step{{after: minProgress - 1, broken: errCut}}, 200)}
			o := options(s)
			o.Retry.Timeout = 30 * time.Second
			began := time.Now()
			_, err := readAll(t.Context(), o)
			require.ErrorIs(t, err, errCut)
			require.Equal(t, 30*time.Second, time.Since(began))
		})
	})
	t.Run("without a byte for the timeout", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &server{content: []byte("content"), script: []step{{after: 1, broken: errCut}}}
			for range 1000 {
				s.script = append(s.script, step{broken: errCut})
			}
			o := options(s)
			o.Retry.Timeout = 30 * time.Second
			o.Broken = func(offset int64, err error) error { return fmt.Errorf("at %d: %w", offset, err) }
			told := 0
			o.Retrying = func(offset int64, err error) {
				require.EqualValues(t, 1, offset)
				told++
			}
			began := time.Now()
			got, err := readAll(t.Context(), o)
			require.ErrorIs(t, err, errCut)
			require.ErrorContains(t, err, "at 1")
			require.Equal(t, "c", got)
			require.Equal(t, 30*time.Second, time.Since(began))
			require.Equal(t, len(s.requests)-1, told)
		})
	})
	t.Run("where a response brings next to nothing", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &server{content: bytes.Repeat([]byte("x"), 1000)}
			for range len(s.content) {
				s.script = append(s.script, step{after: 1, broken: errCut})
			}
			o := options(s)
			o.Retry.Timeout = 30 * time.Second
			began := time.Now()
			got, err := readAll(t.Context(), o)
			require.ErrorIs(t, err, errCut)
			require.Len(t, got, len(s.requests))
			require.Equal(t, 30*time.Second, time.Since(began))
		})
	})
	t.Run("not while it goes on", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &server{content: bytes.Repeat([]byte("x"), 200*minProgress)}
			for range 199 {
				s.script = append(s.script, step{after: minProgress, broken: errCut})
			}
			o := options(s)
			o.Retry.Timeout = time.Second
			got, err := readAll(t.Context(), o)
			require.NoError(t, err)
			require.Equal(t, string(s.content), got)
		})
	})
	t.Run("where the failure is permanent", func(t *testing.T) {
		t.Parallel()
		s := &server{content: []byte("content"), script: []step{{err: permanent{}}}}
		_, err := readAll(t.Context(), options(s))
		require.ErrorIs(t, err, permanent{})
		require.Len(t, s.requests, 1)
	})
	t.Run("where told so", func(t *testing.T) {
		t.Parallel()
		s := &server{content: []byte("content"), script: []step{{after: 2, broken: errCut}}}
		r, err := Start(t.Context(), options(s))
		require.NoError(t, err)
		defer r.Close()
		r.NoResume()
		_, err = io.ReadAll(r)
		require.ErrorIs(t, err, errCut)
		_, again := r.Read(make([]byte, 1))
		require.Equal(t, err, again)
	})
}

type permanent struct{}

func (permanent) Error() string { return "no" }

func (permanent) Transient() bool { return false }

func TestStallsResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{content: []byte("content"), script: []step{{after: 3, stall: true}}}
		o := options(s)
		o.StallTimeout = time.Minute
		got, err := readAll(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, "content", got)

		s = &server{content: []byte("content"), script: []step{{after: 3, stall: true}}}
		o.Open, o.Retry.Timeout = s.open, -1
		_, err = readAll(t.Context(), o)
		require.ErrorIs(t, err, stall.Err)
	})
}

func TestContextAndCloseEndARead(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T, ctx context.Context) (*server, *Reader, <-chan error) {
		t.Helper()
		s := &server{content: []byte("content"), script: []step{{after: 3, stall: true}}}
		r, err := Start(ctx, options(s))
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(r)
			ended <- err
		}()
		synctest.Wait()
		return s, r, ended
	}
	t.Run("context", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			cause := errors.New("the caller's reason")
			ctx, cancel := context.WithCancelCause(t.Context())
			s, r, ended := begin(t, ctx)
			cancel(cause)
			err := <-ended
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, cause)
			require.Len(t, s.requests, 1)
			require.NoError(t, r.Close())
		})
	})
	t.Run("close", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s, r, ended := begin(t, t.Context())
			require.NoError(t, r.Close())
			require.Error(t, <-ended)
			require.Len(t, s.requests, 1, "a closed reader asks for nothing more")
		})
	})
	t.Run("close while a request is sent", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &server{content: []byte("content"), script: []step{{after: 3, broken: errCut}}}
			o := options(s)
			var r *Reader
			closed := &closeCounter{}
			o.Open = func(ctx context.Context, header http.Header) (*http.Response, error) {
				if len(s.requests) == 1 {
					require.NoError(t, r.Close())
				}
				res, err := s.open(ctx, header)
				if err == nil && len(s.requests) == 2 {
					closed.Reader = res.Body
					res.Body = closed
				}
				return res, err
			}
			r, err := Start(t.Context(), o)
			require.NoError(t, err)
			_, err = io.ReadAll(r)
			require.ErrorIs(t, err, ErrClosed)
			require.Positive(t, closed.n, "the late response is closed")
		})
	})
}

type closeCounter struct {
	io.Reader
	n int
}

func (c *closeCounter) Close() error {
	c.n++
	return nil
}

func TestParse(t *testing.T) {
	t.Parallel()
	from, end, total, err := Parse("bytes 5-8/10")
	require.NoError(t, err)
	require.Equal(t, [3]int64{5, 9, 10}, [3]int64{from, end, total})
	_, _, total, err = Parse("bytes 5-8/*")
	require.NoError(t, err)
	require.EqualValues(t, -1, total)
	for _, bad := range []string{
		"", "bytes", "bytes 5-8", "bytes 5/10", "bytes 8-5/10", "bytes 5-10/10", "bytes -1-5/10", "bytes a-b/c",
		"items 5-8/10", "bytes +5-8/10", "bytes 5-8/99999999999999999999", "bytes 5-8/10 ",
	} {
		_, _, _, err := Parse(bad)
		require.ErrorIs(t, err, ErrRange, bad)
	}
}
