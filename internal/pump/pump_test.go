package pump

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestPumpHandsOnAndHashes(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 7*blockSize + 3} {
		data := randomBytes(size)
		want := sha256.Sum256(data)
		for name, read := range map[string]func(*Pump) ([]byte, error){
			"Read": func(p *Pump) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{p}) },
			"WriteTo": func(p *Pump) ([]byte, error) {
				var b bytes.Buffer
				n, err := p.WriteTo(&b)
				require.EqualValues(t, b.Len(), n)
				return b.Bytes(), err
			},
			"both": func(p *Pump) ([]byte, error) {
				head := make([]byte, size/3)
				if _, err := io.ReadFull(p, head); err != nil {
					return nil, err
				}
				b := bytes.NewBuffer(head)
				_, err := p.WriteTo(b)
				return b.Bytes(), err
			},
		} {
			for _, src := range []io.Reader{bytes.NewReader(data), iotest.HalfReader(bytes.NewReader(data)), iotest.DataErrReader(bytes.NewReader(data))} {
				sum := sha256.New()
				counted := 0
				p := Start(src, sum, func(n int) { counted += n }, nil)
				got, err := read(p)
				require.NoError(t, err, name)
				require.True(t, bytes.Equal(data, got), name)
				require.Equal(t, want[:], sum.Sum(nil), name)
				require.Equal(t, size, counted)
				n, err := p.Read(make([]byte, 1))
				require.Zero(t, n)
				require.Equal(t, io.EOF, err)
				p.Close()
				p.Close()
				_, err = p.Read(make([]byte, 1))
				require.Equal(t, ErrClosed, err)
			}
		}
	}
}

// TestPumpWritesFullBlocks reads sources that return few bytes at a time, as TLS
// does.
func TestPumpWritesFullBlocks(t *testing.T) {
	t.Parallel()
	data := randomBytes(5*blockSize + 100)
	counts := &sizes{}
	p := Start(&smallReader{data: data, most: 16 << 10}, sha256.New(), func(n int) { counts.list = append(counts.list, n) }, nil)
	defer p.Close()
	w := &sizes{}
	_, err := p.WriteTo(w)
	require.NoError(t, err)
	require.Equal(t, []int{blockSize, blockSize, blockSize, blockSize, blockSize, 100}, w.list)
	require.Equal(t, append(slices.Repeat([]int{16 << 10}, 5*blockSize/(16<<10)), 100), counts.list, "each is counted as it comes")
}

type smallReader struct {
	data []byte
	most int
}

func (r *smallReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.most)], r.data)
	r.data = r.data[n:]
	return n, nil
}

type sizes struct{ list []int }

func (s *sizes) Write(p []byte) (int, error) {
	if len(p) > 0 {
		s.list = append(s.list, len(p))
	}
	return len(p), nil
}

func TestPumpGivesSourcesErrorAfterItsBytes(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	data := randomBytes(blockSize + 10)
	for _, cause := range []error{broken, io.ErrUnexpectedEOF} {
		p := Start(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(cause)), sha256.New(), nil, nil)
		var b bytes.Buffer
		_, err := p.WriteTo(&b)
		require.ErrorIs(t, err, cause)
		require.True(t, bytes.Equal(data, b.Bytes()))
		_, err = p.Read(make([]byte, 1))
		require.ErrorIs(t, err, cause, "and again")
		p.Close()
	}
}

// TestPumpStopsReadingWhenNobodyConsumes checks that reading ahead is bounded.
func TestPumpStopsReadingWhenNobodyConsumes(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	read := 0
	first := make(chan struct{}, 64)
	p := Start(endless{}, sha256.New(), func(n int) {
		mu.Lock()
		read += n
		mu.Unlock()
		first <- struct{}{}
	}, nil)
	for range blocks {
		<-first
	}
	p.Close() // ends the goroutines although the source is endless
	<-p.ended
	require.LessOrEqual(t, read, blocks*blockSize)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestPumpClosedFromElsewhere closes while the consumer waits, or processes a block.
func TestPumpClosedFromElsewhere(t *testing.T) {
	t.Parallel()
	read := func(p *Pump) error { _, err := io.Copy(io.Discard, struct{ io.Reader }{p}); return err }
	writeTo := func(p *Pump) error { _, err := p.WriteTo(io.Discard); return err }
	for name, consume := range map[string]func(*Pump) error{"Read": read, "WriteTo": writeTo} {
		t.Run(name+", of a source that blocks", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				src, w := io.Pipe()
				p := Start(src, sha256.New(), nil, nil)
				ended := make(chan error, 1)
				go func() { ended <- consume(p) }()
				_, err := w.Write(make([]byte, blockSize+1))
				require.NoError(t, err)
				synctest.Wait() // the consumer waits for the second block
				p.Close()
				synctest.Wait()
				require.Len(t, ended, 1)
				require.Equal(t, ErrClosed, <-ended)
				require.NoError(t, src.Close())
				<-p.ended
			})
		})
		t.Run(name+", at full speed", func(t *testing.T) {
			t.Parallel()
			for range 50 {
				p := Start(endless{}, sha256.New(), nil, nil)
				ended := make(chan error)
				go func() { ended <- consume(p) }()
				p.Close()
				require.Equal(t, ErrClosed, <-ended)
			}
		})
	}
}

// TestPumpGivesAwayWhatNobodyUses has other pumps write to the recycled buffers of
// closed pumps whose consumer and source are still running. It detects overwritten
// blocks, and with the race detector all shared use.
func TestPumpGivesAwayWhatNobodyUses(t *testing.T) {
	t.Parallel()
	for n := range 10 {
		fill := byte(n)
		src := &slowSource{fill: fill, inside: make(chan struct{}), unblock: make(chan struct{})}
		p := Start(src, sha256.New(), nil, nil)
		var held []byte
		holding, check, checked := make(chan struct{}), make(chan struct{}), make(chan error)
		go func() {
			_, err := p.WriteTo(writerFunc(func(b []byte) (int, error) {
				held = b
				close(holding)
				<-check
				if bytes.Count(held, []byte{fill}) != len(held) {
					return 0, errors.New("the block was overwritten")
				}
				return len(b), nil
			}))
			checked <- err
		}()
		<-holding
		<-src.inside
		p.Close()
		other := Start(bytes.NewReader(bytes.Repeat([]byte{fill + 1}, 2*blocks*blockSize)), sha256.New(), nil, nil)
		close(src.unblock) // writes to the buffer of the blocked read
		_, err := other.WriteTo(writerFunc(func(b []byte) (int, error) {
			if bytes.Count(b, []byte{fill + 1}) != len(b) {
				return 0, errors.New("the other's block was overwritten")
			}
			return len(b), nil
		}))
		require.NoError(t, err)
		other.Close()
		close(check)
		require.Equal(t, ErrClosed, <-checked)
		<-p.ended
	}
}

// slowSource fills one block, and then blocks in the middle of the next until unblock
// is closed.
type slowSource struct {
	fill    byte
	calls   int
	inside  chan struct{}
	unblock chan struct{}
}

func (s *slowSource) Read(p []byte) (int, error) {
	if s.calls++; s.calls == 2 {
		close(s.inside)
		<-s.unblock
	}
	return copy(p, bytes.Repeat([]byte{s.fill}, len(p))), nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestPumpHoldsBack: of content that is not verified, or breaks, the end is missing.
func TestPumpHoldsBack(t *testing.T) {
	t.Parallel()
	broken, wrong := errors.New("broken"), errors.New("wrong")
	for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 3 * blockSize, 7*blockSize + 3} {
		data := randomBytes(size)
		for name, c := range map[string]struct {
			after  error // of the source
			verify error
			want   error
		}{
			"right":                  {io.EOF, nil, nil},
			"wrong":                  {io.EOF, wrong, wrong},
			"broken after all of it": {broken, nil, broken},
		} {
			for _, read := range []func(*Pump) ([]byte, error){
				func(p *Pump) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{p}) },
				func(p *Pump) ([]byte, error) {
					var b bytes.Buffer
					_, err := p.WriteTo(&b)
					return b.Bytes(), err
				},
			} {
				sum := sha256.New()
				verified := false
				src := io.MultiReader(bytes.NewReader(data), iotest.ErrReader(c.after))
				p := Start(src, sum, nil, func() error {
					verified = true
					want := sha256.Sum256(data)
					require.Equal(t, want[:], sum.Sum(nil), "all is hashed")
					return c.verify
				})
				got, err := read(p)
				p.Close()
				if c.want == nil {
					require.NoError(t, err, name)
					require.True(t, bytes.Equal(data, got), name)
					require.True(t, verified)
					continue
				}
				require.ErrorIs(t, err, c.want, name)
				require.True(t, bytes.HasPrefix(data, got), name)
				require.GreaterOrEqual(t, len(got), size-blockSize, "%s: not more than a block is held back", name)
				if size > 0 {
					require.Less(t, len(got), size, name)
				}
			}
		}
	}
}

func TestPumpTellsShortWrites(t *testing.T) {
	t.Parallel()
	p := Start(bytes.NewReader(randomBytes(100)), sha256.New(), nil, nil)
	defer p.Close()
	_, err := p.WriteTo(shortWriter{})
	require.ErrorIs(t, err, io.ErrShortWrite)
}

type shortWriter struct{}

func (shortWriter) Write(p []byte) (int, error) { return len(p) / 2, nil }

func BenchmarkPump(b *testing.B) {
	data := randomBytes(16 << 20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		p := Start(bytes.NewReader(data), sha256.New(), nil, nil)
		if _, err := p.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}
