// Runs the programs that vae_jax/pages/program.py makes: every step is a function of arrays of fixed shapes.
"use strict";

const Program = (() => {
  const ARRAYS = { float: Float32Array, int: Int32Array, bool: Uint8Array };
  const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

  const rowMajor = (shape) => {
    const strides = new Array(shape.length);
    for (let axis = shape.length - 1, size = 1; axis >= 0; size *= shape[axis--]) strides[axis] = size;
    return strides;
  };

  // offset + Σ index × stride, for every index of an array of this shape.
  const places = (shape, strides, offset) => {
    const steps = new Int32Array(product(shape));
    const index = new Array(shape.length).fill(0);
    for (let n = 0, place = offset; n < steps.length; n++) {
      steps[n] = place;
      for (let axis = shape.length - 1; axis >= 0; axis--) {
        place += strides[axis];
        if (++index[axis] < shape[axis]) break;
        place -= strides[axis] * shape[axis];
        index[axis] = 0;
      }
    }
    return steps;
  };

  // Where the elements of an operand lie whose axes of length 1, or missing first axes, are repeated.
  const known = new Map();
  const repeated = (from, to) => {
    const key = `${from}>${to}`;
    if (!known.has(key)) {
      const strides = rowMajor(from).map((stride, axis) => (from[axis] === 1 ? 0 : stride));
      while (strides.length < to.length) strides.unshift(0);
      known.set(key, places(to, strides, 0));
    }
    return known.get(key);
  };

  // 2/√π e^(−x²) Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)), whose terms have one sign, so that nothing cancels.
  const erf = (x) => {
    if (Math.abs(x) > 6) return Math.sign(x);
    let term = x,
      sum = x;
    for (let n = 1; n < 200 && Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  };

  // 1 − erf loses its digits as erf comes near 1. There it is e^(−x²)/√π · 1/(x + ½/(x + 1/(x + 1½/(x + …)))).
  const erfc = (x) => {
    if (x < 2) return 1 - erf(x);
    let below = x;
    for (let n = 60; n > 0; n--) below = x + n / 2 / below;
    return Math.exp(-x * x) / (Math.sqrt(Math.PI) * below);
  };

  const roundEven = (x) => {
    const low = Math.floor(x);
    return x - low !== 0.5 ? Math.round(x) : low % 2 === 0 ? low : low + 1;
  };

  const unary = (f) => (out, a) => {
    for (let n = 0; n < out.length; n++) out[n] = f(a[n]);
  };
  const UNARY = {
    abs: unary(Math.abs),
    acos: unary(Math.acos),
    acosh: unary(Math.acosh),
    asin: unary(Math.asin),
    asinh: unary(Math.asinh),
    atan: unary(Math.atan),
    atanh: unary(Math.atanh),
    cbrt: unary(Math.cbrt),
    ceil: unary(Math.ceil),
    cos: unary(Math.cos),
    cosh: unary(Math.cosh),
    erf: unary(erf),
    erfc: unary(erfc),
    exp2: unary((x) => 2 ** x),
    expm1: unary(Math.expm1),
    floor: unary(Math.floor),
    is_finite: unary((x) => (Number.isFinite(x) ? 1 : 0)),
    log: unary(Math.log),
    log1p: unary(Math.log1p),
    not: unary((x) => ~x),
    not_bool: unary((x) => 1 - x),
    round_even: unary(roundEven),
    round_away: unary((x) => Math.sign(x) * Math.floor(Math.abs(x) + 0.5)),
    rsqrt: unary((x) => 1 / Math.sqrt(x)),
    sign: unary(Math.sign),
    sin: unary(Math.sin),
    sinh: unary(Math.sinh),
    sqrt: unary(Math.sqrt),
    tan: unary(Math.tan),
    tanh: unary(Math.tanh),
    // Loops of their own, which compilers of JavaScript inline:
    exp: (out, a) => {
      for (let n = 0; n < out.length; n++) out[n] = Math.exp(a[n]);
    },
    logistic: (out, a) => {
      for (let n = 0; n < out.length; n++) out[n] = 1 / (1 + Math.exp(-a[n]));
    },
    neg: (out, a) => {
      for (let n = 0; n < out.length; n++) out[n] = -a[n];
    },
    square: (out, a) => {
      for (let n = 0; n < out.length; n++) out[n] = a[n] * a[n];
    },
  };

  const binary = (f) => (out, a, i, b, j) => {
    for (let n = 0; n < out.length; n++) out[n] = f(a[i[n]], b[j[n]]);
  };
  const BINARY = {
    and: binary((a, b) => a & b),
    atan2: binary(Math.atan2),
    div_int: binary((a, b) => (b ? Math.trunc(a / b) : -1)),
    eq: binary((a, b) => (a === b ? 1 : 0)),
    ge: binary((a, b) => (a >= b ? 1 : 0)),
    gt: binary((a, b) => (a > b ? 1 : 0)),
    le: binary((a, b) => (a <= b ? 1 : 0)),
    lt: binary((a, b) => (a < b ? 1 : 0)),
    max: binary(Math.max),
    min: binary(Math.min),
    mul_int: binary(Math.imul),
    ne: binary((a, b) => (a !== b ? 1 : 0)),
    or: binary((a, b) => a | b),
    pow: binary(Math.pow),
    pow_int: binary((a, b) => {
      let made = 1;
      for (; b > 0; b--) made = Math.imul(made, a);
      return made;
    }),
    rem: binary((a, b) => a % b),
    rem_int: binary((a, b) => (b ? a % b : a)),
    shift_left: binary((a, b) => (b > 31 ? 0 : a << b)),
    shift_right_arithmetic: binary((a, b) => a >> Math.min(b, 31)),
    shift_right_logical: binary((a, b) => (b > 31 ? 0 : a >>> b)),
    xor: binary((a, b) => a ^ b),
    add: (out, a, i, b, j) => {
      for (let n = 0; n < out.length; n++) out[n] = a[i[n]] + b[j[n]];
    },
    div: (out, a, i, b, j) => {
      for (let n = 0; n < out.length; n++) out[n] = a[i[n]] / b[j[n]];
    },
    mul: (out, a, i, b, j) => {
      for (let n = 0; n < out.length; n++) out[n] = a[i[n]] * b[j[n]];
    },
    sub: (out, a, i, b, j) => {
      for (let n = 0; n < out.length; n++) out[n] = a[i[n]] - b[j[n]];
    },
  };

  const logAddExp = (a, b) => {
    const most = Math.max(a, b);
    return Number.isFinite(most) ? most + Math.log(Math.exp(a - most) + Math.exp(b - most)) : most;
  };
  const FOLDS = {
    sum: [0, (a, b) => a + b],
    prod: [1, (a, b) => a * b],
    max: [-Infinity, Math.max],
    min: [Infinity, Math.min],
    logsumexp: [-Infinity, logAddExp],
  };

  // The elements of an image that a tap of the kernel meets: image × spread = result × stride + tap × taps − low.
  // They and their results are two sequences with fixed distances; zeros between an image's elements are never met.
  const greatest = (a, b) => (b ? greatest(b, a % b) : a);
  const meetings = (tap, inner, outer, stride, low, spread, taps) => {
    const shared = greatest(stride, spread),
      by = stride / shared,
      to = spread / shared;
    for (let first = 0; first < by; first++) {
      const at = first * spread - tap * taps + low;
      if (at % stride !== 0) continue;
      const skipped = Math.max(0, Math.ceil(-at / stride / to));
      const image = first + skipped * by,
        result = at / stride + skipped * to;
      const count = Math.min(Math.floor((inner - 1 - image) / by), Math.floor((outer - 1 - result) / to)) + 1;
      return { image, result, by, to, count: Math.max(0, count) };
    }
    return { count: 0 };
  };

  const convolution = (step, out, [images, kernel], [inShape, kernelShape]) => {
    const [count, channels, height, width] = inShape,
      [outer, inner, rows, columns] = kernelShape;
    const [, , outHeight, outWidth] = step.shape;
    const along = (axis, taps, from, to) =>
      Array.from({ length: taps }, (_, tap) =>
        meetings(tap, from, to, step.strides[axis], step.low[axis], step.spread[axis], step.taps[axis]),
      );
    const vertical = along(0, rows, height, outHeight),
      horizontal = along(1, columns, width, outWidth);
    const plane = outHeight * outWidth,
      sum = new Float64Array(plane),
      perGroup = outer / step.groups;
    return () => {
      for (let image = 0; image < count; image++) {
        for (let o = 0; o < outer; o++) {
          const firstChannel = Math.floor(o / perGroup) * inner;
          sum.fill(0);
          for (let c = 0; c < inner; c++) {
            const from = (image * channels + firstChannel + c) * height * width;
            let weight = (o * inner + c) * rows * columns;
            for (let row = 0; row < rows; row++) {
              const v = vertical[row];
              for (let column = 0; column < columns; column++) {
                const w = kernel[weight++],
                  h = horizontal[column];
                for (let y = 0; y < v.count; y++) {
                  let i = from + (v.image + y * v.by) * width + h.image,
                    by = h.by;
                  let r = (v.result + y * v.to) * outWidth + h.result,
                    to = h.to;
                  for (let x = 0; x < h.count; x++, i += by, r += to) sum[r] += w * images[i];
                }
              }
            }
          }
          out.set(sum, (image * outer + o) * plane);
        }
      }
    };
  };

  const OPERATIONS = {
    view: (step, out, [a]) => {
      const from = places(step.shape, step.strides, step.offset);
      return () => {
        for (let n = 0; n < out.length; n++) out[n] = a[from[n]];
      };
    },
    put: (step, out, [fill, ...parts], [, ...shapes]) => {
      const targets = step.parts.map((part, n) => places(shapes[n], part.strides, part.offset));
      return () => {
        out.fill(fill[0]);
        parts.forEach((part, n) => {
          const to = targets[n];
          for (let m = 0; m < to.length; m++) out[to[m]] = part[m];
        });
      };
    },
    convert: (step, out, [a]) => {
      if (step.kind !== "bool") return () => out.set(a);
      return () => {
        for (let n = 0; n < out.length; n++) out[n] = a[n] !== 0 ? 1 : 0;
      };
    },
    unary: (step, out, [a]) => {
      const f = UNARY[step.f];
      return () => f(out, a);
    },
    binary: (step, out, [a, b], shapes) => {
      const f = BINARY[step.f],
        [i, j] = shapes.map((shape) => repeated(shape, step.shape));
      return () => f(out, a, i, b, j);
    },
    select: (step, out, arrays, shapes) => {
      const maps = shapes.map((shape) => repeated(shape, step.shape)),
        which = arrays[0];
      return () => {
        for (let n = 0; n < out.length; n++) {
          const chosen = 1 + which[maps[0][n]];
          out[n] = arrays[chosen][maps[chosen][n]];
        }
      };
    },
    matmul:
      (step, out, [a, b], [[batch, rows, inner], [, columns]]) =>
      () => {
        for (let n = 0, o = 0; n < batch; n++) {
          for (let row = 0; row < rows; row++) {
            for (let column = 0; column < columns; column++) {
              let sum = 0,
                i = (n * rows + row) * inner,
                j = (n * columns + column) * inner;
              for (let k = 0; k < inner; k++) sum += a[i++] * b[j++];
              out[o++] = sum;
            }
          }
        }
      },
    convolve: convolution,
    reduce: (step, out, [a], [[rows, columns]]) => {
      const least = step.f === "argmin";
      if (least || step.f === "argmax") {
        return () => {
          for (let row = 0; row < rows; row++) {
            let best = 0;
            for (let c = 1; c < columns; c++) {
              const value = a[row * columns + c],
                known = a[row * columns + best];
              if (Number.isNaN(known)) break; // the first NaN is the result
              if (Number.isNaN(value) || (least ? value < known : value > known)) best = c;
            }
            out[row] = best;
          }
        };
      }
      const [first, f] = FOLDS[step.f];
      return () => {
        for (let row = 0; row < rows; row++) {
          let made = first;
          for (let n = row * columns; n < (row + 1) * columns; n++) made = f(made, a[n]);
          out[row] = made;
        }
      };
    },
    cumulate: (step, out, [a], [[rows, columns]]) => {
      const [first, f] = FOLDS[step.f];
      return () => {
        for (let row = 0; row < rows; row++) {
          let made = first;
          for (let n = row * columns; n < (row + 1) * columns; n++) out[n] = made = f(made, a[n]);
        }
      };
    },
    gather: (step, out, [a, indices, first, fill]) => {
      const within = places(step.slice, step.slice_strides, 0),
        size = within.length,
        axes = step.most.length;
      return () => {
        for (let row = 0; row < first.length; row++) {
          let start = first[row],
            outside = false;
          for (let axis = 0; axis < axes; axis++) {
            const index = indices[row * axes + axis],
              kept = Math.min(Math.max(index, 0), step.most[axis]);
            outside ||= index !== kept;
            start += kept * step.strides[axis];
          }
          for (let n = 0; n < size; n++) out[row * size + n] = outside && fill ? fill[0] : a[start + within[n]];
        }
      };
    },
  };

  const decoded = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  /** The array of a kind in base64. */
  const arrayOf = (text, kind) => {
    const bytes = decoded(text);
    return kind === "bool" ? bytes : new ARRAYS[kind](bytes.buffer);
  };

  /** A program ready to run: {inputs: arrays to fill by name, run}; `run` gives the results' arrays, the same each time. */
  const prepared = ({ steps, results }) => {
    const arrays = [],
      inputs = {},
      changing = [],
      todo = [];
    steps.forEach((step, number) => {
      const from = step.in.map((n) => arrays[n]);
      changing[number] = step.op === "input" || step.in.some((n) => changing[n]);
      if (step.op === "constant") {
        const stored = arrayOf(step.data, step.kind),
          size = product(step.shape);
        arrays[number] =
          stored.length === size
            ? stored
            : stored.constructor.from(repeated(step.stored, step.shape), (n) => stored[n]);
      } else if (step.op === "reshape") {
        arrays[number] = from[0];
      } else {
        arrays[number] = new ARRAYS[step.kind](product(step.shape));
        if (step.op === "input") inputs[step.name] = arrays[number];
        else {
          const run = OPERATIONS[step.op](
            step,
            arrays[number],
            from,
            step.in.map((n) => steps[n].shape),
          );
          if (changing[number]) todo.push(run);
          else run();
        }
      }
    });
    const made = results.map((number) => arrays[number]);
    return {
      inputs,
      run: () => {
        for (const run of todo) run();
        return made;
      },
    };
  };

  return { prepared, arrayOf };
})();
