/* SPDX-License-Identifier: Apache-2.0 */
/* The client API on a container opened in this process: every kind of read, view and mistake. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "make-container.h"

#define ROWS 500
#define COLS 96
#define WIDE_ROWS 3
#define WIDE_COLS 5000 /* U16: a row is 10,000 bytes, longer than its pages of 4096 */
#define CONFIG "{\"architectures\":[\"test\"]}"

static char path[64];
static uint16_t weights[ROWS][COLS];
static uint16_t wide[WIDE_ROWS][WIDE_COLS];
static int8_t quantized[4][6] = {
	{-128, -3, 0, 1, 2, 127}, {10, 20, 30, 40, 50, 60}, {1, 1, 1, 1, 1, 1}, {-5, 4, -3, 2, -1, 0}};
static const float scales[4] = {0.5F, 2, 4, 0.25F}, zeros[4] = {1, 0, -1, 2};
static const float group_scales[4][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
static const float input[6] = {1, 1, 2, 1, 1, 0.5F};
static const float outliers[4][1] = {{1000}, {2000}, {3000}, {4000}};
static const int32_t outlier_cols[1] = {3};

enum { WEIGHTS, RAW, WIDE, QUANTIZED, GROUPED, SCALE, ZERO, GROUP_SCALE, INPUT, OUTLIER, OUTLIER_AT,
       EMPTY, SCALAR, N_TENSORS };

static int setup(void **state)
{
	static const float scalar = 42;
	const struct container_companion companions[] = {
		{QUANTIZED, SCALE, DCMEM_REL_SCALE, 1, 0, 0, 0},
		{QUANTIZED, ZERO, DCMEM_REL_ZERO_POINT, 1, 0, 0, 0},
		{QUANTIZED, INPUT, DCMEM_REL_INPUT_SCALE, 1, 1, 0, 0},
		{QUANTIZED, OUTLIER, DCMEM_REL_OUTLIER_VALUES, 1, 0, 0, 0},
		{QUANTIZED, OUTLIER_AT, DCMEM_REL_OUTLIER_INDEX, 1, 0, 0, 0},
		{GROUPED, GROUP_SCALE, DCMEM_REL_SCALE, 1, 0, 3, 0},
	};
	const struct make_tensor tensors[N_TENSORS] = {
		{"weights", DCMEM_BF16, 2, {ROWS, COLS}, sizeof(weights), weights, 192 * 64,
		 CODEC_ZSTD_PLANES_16},
		{"raw", DCMEM_BF16, 2, {ROWS, COLS}, sizeof(weights), weights, 192 * 64, CODEC_RAW},
		{"wide", DCMEM_U16, 2, {WIDE_ROWS, WIDE_COLS}, sizeof(wide), wide, 4096, CODEC_ZSTD},
		{"quantized", DCMEM_I8, 2, {4, 6}, 24, quantized, 12, CODEC_RAW, 0, 5},
		{"grouped", DCMEM_I8, 2, {4, 6}, 24, quantized, 12, CODEC_RAW, 5, 1},
		{"scale", DCMEM_F32, 1, {4}, 16, scales, 4096, CODEC_RAW},
		{"zero", DCMEM_F32, 2, {4, 1}, 16, zeros, 4096, CODEC_RAW},
		{"group_scale", DCMEM_F32, 2, {4, 2}, 32, group_scales, 4096, CODEC_RAW},
		{"input", DCMEM_F32, 1, {6}, 24, input, 4080, CODEC_RAW},
		{"outlier", DCMEM_F32, 2, {4, 1}, 16, outliers, 4096, CODEC_RAW},
		{"outlier_at", DCMEM_I32, 1, {1}, 4, outlier_cols, 4096, CODEC_RAW},
		{"empty", DCMEM_F32, 2, {0, 8}, 0, "", 4096, CODEC_RAW},
		{"scalar", DCMEM_F32, 0, {0}, 4, &scalar, 4096, CODEC_RAW},
	};
	uint16_t *flat = &weights[0][0], *flat_wide = &wide[0][0];
	uint32_t x = 1;

	for (unsigned i = 0; i < ROWS * COLS; i++) {
		x = x * 1664525 + 1013904223;
		flat[i] = (uint16_t)(0x3c00 + (x >> 28) * 128 + (x >> 20 & 0x7f));
	}
	for (unsigned i = 0; i < WIDE_ROWS * WIDE_COLS; i++)
		flat_wide[i] = (uint16_t)(i / 7);
	(void)snprintf(path, sizeof(path), "/tmp/dcmem-test-%d.dcmem", (int)getpid());
	return make_container(path, tensors, N_TENSORS, companions, 6, CONFIG);
}

static int teardown(void **state)
{
	return unlink(path);
}

static struct dcmem *open_model(void)
{
	struct dcmem *model = NULL;
	int r = dcmem_open(path, NULL, &model);

	if (r != 0)
		fail_msg("%s", dcmem_error());
	return model;
}

static void test_describe(void **state)
{
	struct dcmem *model = open_model();
	struct dcmem_companion companion;
	struct dcmem_tensor t;

	assert_false(dcmem_is_served(model));
	assert_int_equal(dcmem_n_tensors(model), N_TENSORS);
	assert_int_equal(dcmem_find(model, "wide", &t), 0);
	assert_int_equal(t.id, WIDE);
	assert_string_equal(t.name, "wide");
	assert_int_equal(t.n_rows, WIDE_ROWS);
	assert_int_equal(t.row_bytes, WIDE_COLS * 2);
	assert_int_equal(t.codec, CODEC_ZSTD);
	assert_true(t.stored_bytes < t.n_bytes);
	assert_int_equal(dcmem_find(model, "no", &t), DCMEM_E_NOT_FOUND);
	assert_non_null(strstr(dcmem_error(), "no"));
	assert_int_equal(dcmem_tensor(model, N_TENSORS, &t), DCMEM_E_INVALID);
	assert_int_equal(dcmem_tensor(model, SCALAR, &t), 0);
	assert_int_equal(t.n_dims, 0);
	assert_int_equal(t.n_rows * t.n_cols, 1);
	assert_int_equal(dcmem_companion(model, QUANTIZED, 2, &companion), 0);
	assert_int_equal(companion.tensor, INPUT);
	assert_int_equal(companion.relation, DCMEM_REL_INPUT_SCALE);
	assert_int_equal(dcmem_companion(model, QUANTIZED, 5, &companion), DCMEM_E_INVALID);
	assert_null(dcmem_close(model));
	assert_null(dcmem_close(NULL));
}

/* Every block of rows and columns of some grid, dense and with a stride, against the source. */
static void check_blocks(struct dcmem *model, uint64_t tensor, const uint16_t *source, unsigned rows,
			 unsigned cols, unsigned row_step, unsigned col_step)
{
	uint16_t *got = malloc((size_t)rows * (cols + 3) * 2);

	for (unsigned r = 0; r < rows; r += row_step) {
		for (unsigned c = 0; c < cols; c += col_step) {
			unsigned n_rows = rows - r > row_step ? row_step + 1 : rows - r;
			unsigned n_cols = cols - c > 2 * col_step ? 2 * col_step : cols - c;
			unsigned stride = c % 2 ? n_cols + 3 : n_cols;
			struct dcmem_read q = {.size = sizeof(q),
					       .tensor = tensor,
					       .row = r,
					       .n_rows = n_rows,
					       .col = c,
					       .n_cols = n_cols,
					       .stride_bytes = c % 2 ? stride * 2 : 0,
					       .dst = got,
					       .dst_bytes = ((n_rows - 1) * stride + n_cols) * 2};

			memset(got, 0xee, (size_t)rows * (cols + 3) * 2);
			assert_int_equal(dcmem_read(model, &q), 0);
			for (unsigned i = 0; i < n_rows; i++) {
				assert_memory_equal(got + i * stride, source + (r + i) * cols + c,
						    n_cols * 2);
				if (stride > n_cols) /* the gap is the caller's */
					assert_int_equal(got[i * stride + n_cols], 0xeeee);
			}
			q.dst_bytes--;
			assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
		}
	}
	free(got);
}

static void test_blocks(void **state)
{
	struct dcmem *model = open_model();

	check_blocks(model, WEIGHTS, weights[0], ROWS, COLS, 61, 17);
	check_blocks(model, WEIGHTS, weights[0], ROWS, COLS, 100, COLS);
	check_blocks(model, RAW, weights[0], ROWS, COLS, 61, 17);
	check_blocks(model, WIDE, wide[0], WIDE_ROWS, WIDE_COLS, 1, 777);
	check_blocks(model, WIDE, wide[0], WIDE_ROWS, WIDE_COLS, 2, WIDE_COLS);
	dcmem_close(model);
}

static void test_arguments(void **state)
{
	struct dcmem *model = open_model();
	uint8_t byte[4096];
	const struct dcmem_read good = {.size = sizeof(good),
					.tensor = WEIGHTS,
					.n_rows = 1,
					.dst = byte,
					.dst_bytes = sizeof(byte)};
	struct dcmem_read q = good;

	assert_int_equal(dcmem_read(model, &q), 0);
	q.size = 8;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.flags = 1;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.row = ROWS;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.row = UINT64_MAX;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.row = 1, q.n_rows = UINT64_MAX;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.col = 1, q.n_cols = COLS;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.stride_bytes = 1;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.n_rows = 2, q.stride_bytes = UINT64_MAX;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.dst = NULL;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_INVALID);
	q = good, q.dtype = DCMEM_I8;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_UNSUPPORTED);
	q = good, q.tensor = EMPTY, q.n_rows = 0, q.dst = NULL, q.dst_bytes = 0;
	assert_int_equal(dcmem_read(model, &q), 0);
	dcmem_close(model);
}

static void test_dtypes(void **state)
{
	struct dcmem *model = open_model();
	static float got[ROWS][COLS];
	struct dcmem_read q = {.size = sizeof(q),
			       .tensor = WEIGHTS,
			       .dtype = DCMEM_F32,
			       .dst = got,
			       .dst_bytes = sizeof(got)};

	assert_int_equal(dcmem_read(model, &q), 0);
	for (unsigned r = 0; r < ROWS; r++) {
		for (unsigned c = 0; c < COLS; c++) {
			uint32_t bits;

			memcpy(&bits, &got[r][c], sizeof(bits));
			assert_int_equal(bits, (uint32_t)weights[r][c] << 16);
		}
	}
	q.dtype = DCMEM_BF16; /* as stored, by name */
	assert_int_equal(dcmem_read(model, &q), 0);
	assert_memory_equal(got, weights, sizeof(weights));
	dcmem_close(model);
}

/* The definition, written out: w = (q - zero) * scale * input, outlier columns replaced. */
static void test_dequantize(void **state)
{
	struct dcmem *model = open_model();
	float got[4][6];
	int8_t stored[4][6];
	struct dcmem_read q = {.size = sizeof(q), .dtype = DCMEM_F32, .dst = got,
			       .dst_bytes = sizeof(got)};

	for (unsigned row = 0; row < 4; row++) {
		q.tensor = QUANTIZED;
		q.row = row;
		assert_int_equal(dcmem_read(model, &q), 0);
		for (unsigned r = row; r < 4; r++) {
			for (unsigned c = 0; c < 6; c++) {
				float w = ((float)quantized[r][c] - zeros[r]) * scales[r] * input[c];

				assert_true(got[r - row][c] == (c == 3 ? outliers[r][0] : w));
			}
		}
		q.tensor = GROUPED;
		assert_int_equal(dcmem_read(model, &q), 0);
		for (unsigned r = row; r < 4; r++) {
			for (unsigned c = 0; c < 6; c++)
				assert_true(got[r - row][c] ==
					    (float)quantized[r][c] * group_scales[r][c / 3]);
		}
	}
	q = (struct dcmem_read){.size = sizeof(q), .tensor = QUANTIZED, .row = 1, .n_rows = 2,
				.col = 2, .n_cols = 3, .dtype = DCMEM_F32, .dst = got,
				.dst_bytes = sizeof(got)};
	assert_int_equal(dcmem_read(model, &q), 0);
	assert_true(((float *)got)[0] == 30 * 2 * 2 && ((float *)got)[1] == 2000 &&
		    ((float *)got)[2] == 100 && ((float *)got)[3] == 16 && ((float *)got)[4] == 3000);
	q = (struct dcmem_read){.size = sizeof(q), .tensor = QUANTIZED, .dst = stored,
				.dst_bytes = sizeof(stored)};
	assert_int_equal(dcmem_read(model, &q), 0); /* dtype 0: as stored */
	assert_memory_equal(stored, quantized, sizeof(stored));
	dcmem_close(model);
}

static void test_views(void **state)
{
	struct dcmem *model = open_model();
	struct dcmem_view a, b, copy;

	assert_int_equal(dcmem_acquire(model, WEIGHTS, 0, 0, &a), 0);
	assert_int_equal(a.kind, DCMEM_VIEW_PRIVATE);
	assert_int_equal(a.n_rows, ROWS);
	assert_int_equal((uintptr_t)a.data % 64, 0);
	assert_memory_equal(a.data, weights, sizeof(weights));
	assert_int_equal(dcmem_acquire(model, WEIGHTS, 0, ROWS, &b), 0);
	assert_ptr_equal(a.data, b.data); /* decoded once */
	copy = a;
	dcmem_release(model, &a);
	assert_null(a.data);
	dcmem_release(model, &a);
	dcmem_release(model, &copy); /* a number that is no more */
	assert_memory_equal(b.data, weights, sizeof(weights));
	dcmem_release(model, &b);
	assert_int_equal(dcmem_acquire(model, RAW, 100, 7, &a), 0);
	assert_memory_equal(a.data, weights[100], 7 * sizeof(weights[0]));
	assert_int_equal(dcmem_acquire(model, EMPTY, 0, 0, &b), 0);
	assert_int_equal(b.n_bytes, 0);
	dcmem_release(model, &b);
	assert_int_equal(dcmem_acquire(model, RAW, ROWS, 1, &b), DCMEM_E_INVALID);
	assert_int_equal(dcmem_prefetch(model, RAW, 0, 0), 0);
	dcmem_close(model); /* with a view out: freed with the handle */
}

static void test_files(void **state)
{
	struct dcmem *model = open_model();
	struct dcmem_file file;
	size_t n_bytes;
	char *text;

	assert_int_equal(dcmem_n_files(model), 1);
	assert_int_equal(dcmem_file(model, 0, &file), 0);
	assert_string_equal(file.name, "config.json");
	assert_int_equal(dcmem_file(model, 1, &file), DCMEM_E_NOT_FOUND);
	assert_int_equal(dcmem_read_file(model, "config.json", &text, &n_bytes), 0);
	assert_string_equal(text, CONFIG);
	assert_int_equal(n_bytes, strlen(CONFIG));
	dcmem_free(text);
	assert_int_equal(dcmem_read_file(model, "other", &text, &n_bytes), DCMEM_E_NOT_FOUND);
	dcmem_close(model);
}

static void *sweep(void *data)
{
	struct dcmem *model = data;
	uint16_t rows[10][COLS];

	for (unsigned r = 0; r + 10 <= ROWS; r += 10) {
		struct dcmem_read q = {.size = sizeof(q), .tensor = WEIGHTS, .row = r, .n_rows = 10,
				       .dst = rows, .dst_bytes = sizeof(rows)};
		struct dcmem_view view;

		if (dcmem_read(model, &q) != 0 || memcmp(rows, weights[r], sizeof(rows)) != 0)
			return strdup("a read went wrong");
		if (dcmem_acquire(model, WEIGHTS, r, 10, &view) != 0 ||
		    memcmp(view.data, weights[r], sizeof(rows)) != 0)
			return strdup("a view went wrong");
		dcmem_release(model, &view);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct dcmem *model = open_model();
	struct dcmem_counters counters = {.size = sizeof(counters)};
	pthread_t threads[4];

	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, sweep, model), 0);
	for (unsigned i = 0; i < 4; i++) {
		void *wrong;

		pthread_join(threads[i], &wrong);
		assert_null(wrong);
	}
	assert_int_equal(dcmem_counters(model, &counters), 0);
	assert_true(counters.decoded_bytes > sizeof(weights));
	dcmem_close(model);
}

static struct dcmem_counters counted(struct dcmem *model)
{
	struct dcmem_counters counters = {.size = sizeof(counters)};

	assert_int_equal(dcmem_counters(model, &counters), 0);
	return counters;
}

/* What a block of rows costs: bytes decoded, and of these copied. */
static void check_tile(struct dcmem *model, uint64_t tensor, uint64_t row, uint64_t n_rows,
		       uint64_t col, uint64_t n_decoded, uint64_t n_copied)
{
	static uint16_t tile[ROWS][COLS];
	struct dcmem_read q = {.size = sizeof(q), .tensor = tensor, .row = row, .n_rows = n_rows,
			       .col = col, .stride_bytes = sizeof(tile[0]), .dst = tile,
			       .dst_bytes = sizeof(tile)};
	struct dcmem_counters before = counted(model), after;

	memset(tile, 0, sizeof(tile));
	assert_int_equal(dcmem_read(model, &q), 0);
	after = counted(model);
	for (uint64_t r = 0; r < n_rows; r++)
		assert_memory_equal(tile[r], &weights[row + r][col], (COLS - col) * 2);
	assert_int_equal(after.decoded_bytes - before.decoded_bytes, n_decoded);
	assert_int_equal(after.copied_bytes - before.copied_bytes, n_copied);
}

/* Whole pages, of 64 rows, are decoded or read where they are wanted; nothing else is. */
static void test_tiles(void **state)
{
	struct dcmem_counters older = {.size = offsetof(struct dcmem_counters, copied_bytes)};
	struct dcmem *model = open_model();
	const uint64_t row = sizeof(weights[0]), page = 64 * row;

	for (uint64_t tensor = WEIGHTS; tensor <= RAW; tensor++) {
		check_tile(model, tensor, 0, ROWS, 0, sizeof(weights), 0);
		check_tile(model, tensor, 64, 128, 0, 2 * page, 0);
		check_tile(model, tensor, 448, ROWS - 448, 0, (ROWS - 448) * row, 0);
		check_tile(model, tensor, 10, 1, 0, page, row);
		check_tile(model, tensor, 10, 54 + 64 + 6, 0, 3 * page, (54 + 6) * row);
		/* Columns are cut out of pages. */
		check_tile(model, tensor, 64, 64, 1, page, page - 2);
	}
	older.copied_bytes = 12345;
	assert_int_equal(dcmem_counters(model, &older), 0);
	assert_true(older.decoded_bytes > 2 * sizeof(weights));
	assert_int_equal(older.copied_bytes, 12345);
	older.size = 40;
	assert_int_equal(dcmem_counters(model, &older), DCMEM_E_INVALID);
	dcmem_close(model);
}

static void test_fork(void **state)
{
	struct dcmem *model = open_model();
	struct dcmem_tensor t;
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		int r = dcmem_tensor(model, 0, &t);

		_exit(r == DCMEM_E_FORKED && dcmem_close(model) == NULL ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(dcmem_tensor(model, 0, &t), 0);
	dcmem_close(model);
}

/* Where in the file a row stands as it is. */
static off_t find_row(int fd, const uint16_t *row)
{
	static uint16_t got[COLS];
	off_t offset = 4096;

	while (pread(fd, got, sizeof(got), offset) == sizeof(got)) {
		if (memcmp(got, row, sizeof(got)) == 0)
			return offset;
		offset += 64;
	}
	fail_msg("no raw row in the file");
	return 0;
}

/* A byte of a page flipped, and the file cut while it is open: an error, never other bytes. */
static void test_damage(void **state)
{
	char other[80], command[200];
	struct dcmem *model = NULL;
	struct dcmem_read q = {.size = sizeof(q), .tensor = RAW};
	static uint16_t got[ROWS][COLS];
	struct stat st;
	uint8_t byte;
	off_t offset;
	int fd;

	(void)snprintf(other, sizeof(other), "%s.copy.dcmem", path);
	(void)snprintf(command, sizeof(command), "cp %s %s", path, other);
	assert_int_equal(system(command), 0);
	fd = open(other, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(pread(fd, &byte, 1, 4096), 1); /* of `weights`, the first tensor */
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, 4096), 1);
	assert_int_equal(dcmem_open(other, NULL, &model), 0);
	q.dst = got;
	q.dst_bytes = sizeof(got);
	assert_int_equal(dcmem_read(model, &q), 0);
	q.tensor = WEIGHTS;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_CORRUPT);
	/* And of a raw page, which is read to its place first. */
	offset = find_row(fd, weights[100]);
	assert_int_equal(pread(fd, &byte, 1, offset), 1);
	byte ^= 0x01;
	assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
	q.tensor = RAW;
	assert_int_equal(dcmem_read(model, &q), DCMEM_E_CORRUPT);
	assert_int_equal(ftruncate(fd, 8192), 0);
	q.tensor = RAW;
	assert_int_not_equal(dcmem_read(model, &q), 0);
	model = dcmem_close(model);
	assert_int_equal(dcmem_open(other, NULL, &model), DCMEM_E_CORRUPT);
	assert_null(model);
	assert_true(strlen(dcmem_error()) > 10);
	close(fd);
	unlink(other);
	assert_true(dcmem_open("/nonexistent/x.dcmem", NULL, &model) < 0);
	assert_true(dcmem_open("/tmp/", NULL, &model) != 0);
}

static void test_no_daemon(void **state)
{
	struct dcmem_options options = {.size = sizeof(options), .socket_path = "/nonexistent/socket"};
	struct dcmem_conn *conn = NULL;
	struct dcmem *model = NULL;
	char longest[200];

	assert_int_equal(dcmem_open("name", &options, &model), DCMEM_E_NO_DAEMON);
	assert_non_null(strstr(dcmem_error(), "/nonexistent/socket"));
	assert_int_equal(dcmem_connect(&options, &conn), DCMEM_E_NO_DAEMON);
	assert_int_equal(dcmem_open("na me", &options, &model), DCMEM_E_INVALID);
	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	options.socket_path = longest;
	assert_true(dcmem_open("name", &options, &model) < 0);
	options.size = 3;
	assert_int_equal(dcmem_open("name", &options, &model), DCMEM_E_INVALID);
	for (int i = -200; i < 40; i++)
		assert_non_null(dcmem_strerror(i));
	assert_string_equal(dcmem_dtype_name(DCMEM_BF16), "BF16");
	assert_int_equal(dcmem_dtype_bytes(DCMEM_F64), 8);
	assert_null(dcmem_dtype_name(99));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_describe),  cmocka_unit_test(test_blocks),
		cmocka_unit_test(test_arguments), cmocka_unit_test(test_dtypes),
		cmocka_unit_test(test_dequantize), cmocka_unit_test(test_views),
		cmocka_unit_test(test_files),	  cmocka_unit_test(test_tiles),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_fork),	  cmocka_unit_test(test_damage),
		cmocka_unit_test(test_no_daemon),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
