/* SPDX-License-Identifier: Apache-2.0 */
/* Containers written call by call, and read back by the reading half. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "model/container.h"
#include "model/writer.h"

static char directory[64], path[96];

static int setup(void **state)
{
	strcpy(directory, "/tmp/dcmem-writer-XXXXXX");
	if (!mkdtemp(directory))
		return -1;
	snprintf(path, sizeof(path), "%s/out.dcmem", directory);
	return 0;
}

static int teardown(void **state)
{
	(void)unlink(path);
	/* Fails if a temporary file is left. */
	return rmdir(directory);
}

static void add_raw(struct writer *writer, const char *name, const void *data, uint32_t n_bytes)
{
	const struct container_tensor record = { .dtype = DCMEM_U8,
						 .n_dims = 1,
						 .dims = { n_bytes },
						 .n_bytes = n_bytes,
						 .page_bytes = 262144 / n_bytes * n_bytes };
	const struct container_page page = { .stored_bytes = n_bytes,
					     .stored_hash = hash_64(data, n_bytes),
					     .decoded_hash = hash_64(data, n_bytes) };

	assert_int_equal(
		writer_tensor_begin(writer, name, (uint32_t)strlen(name), &record, true), 0);
	assert_int_equal(writer_page(writer, &page, data), 0);
	assert_int_equal(writer_tensor_end(writer), 0);
}

static void add_file(struct writer *writer, const char *name, uint32_t kind, const char *text,
		     uint64_t file_bytes)
{
	static const uint8_t hash[16] = { 1, 2, 3 };

	assert_int_equal(writer_file_begin(writer, name, kind), 0);
	assert_int_equal(writer_file_data(writer, text, strlen(text)), 0);
	assert_int_equal(writer_file_end(writer, file_bytes, hash), 0);
}

static void test_read_back(void **state)
{
	static uint8_t data[5000];
	const struct container_form *form;
	const struct container_tensor *tensor;
	const struct container_file *file;
	struct container container;
	struct writer *writer;
	uint64_t id;
	void *blob;

	memset(data, 0x5a, sizeof(data));
	assert_int_equal(writer_new(&writer, path, 3 * 8192), 0);
	add_raw(writer, "small", data, 100);
	add_raw(writer, "large", data, 5000);
	add_file(writer, "a.safetensors", CONTAINER_FILE_SAFETENSORS, "head", 5104);
	add_file(writer, "b/c", CONTAINER_FILE_VERBATIM, "hello", 5);
	assert_int_not_equal(access(path, F_OK), 0);
	assert_int_equal(writer_commit(writer, "codec=raw page=262144"), 0);
	writer_free(writer);

	assert_int_equal(container_open(&container, path), 0);
	assert_int_equal(container.index.n_tensors, 2);
	assert_int_equal(index_find(&container.index, "large", &id), 0);
	assert_int_equal(id, 1);
	assert_int_equal(index_tensor(&container.index, id, &tensor), 0);
	assert_int_equal(index_form(&container.index, tensor->first_form, &form), 0);
	assert_int_equal(form->offset % CONTAINER_ALIGN, 0);
	assert_int_equal(form->flags, CONTAINER_FORM_RAW);
	assert_int_equal(form->stored_bytes, 5000);
	assert_int_equal(index_file(&container.index, 1, &file), 0);
	assert_int_equal(container_read_blob(&container, file, &blob), 0);
	assert_string_equal(blob, "hello");
	memory_free(blob);
	container_close(&container);
}

static void test_dropped(void **state)
{
	struct writer *writer;

	assert_int_equal(writer_new(&writer, path, 0), 0);
	add_raw(writer, "t", "x", 1);
	writer_free(writer);
	assert_int_not_equal(access(path, F_OK), 0);
}

static void test_no_directory(void **state)
{
	struct writer *writer = NULL;

	assert_true(writer_new(&writer, "/nonexistent/dir/x.dcmem", 0) < 0);
	assert_null(writer);
	assert_non_null(strstr(message_get(), "/nonexistent/dir/x.dcmem"));
}

/* Tensors above the target have segments of their own; others share until the target is reached. */
static void test_segments(void **state)
{
	struct container_tensor record = { .dtype = DCMEM_U8, .n_dims = 1, .page_bytes = 1 << 20 };
	const struct container_page page = { .stored_bytes = 1, .codec = 1 };
	const uint64_t sizes[] = { 10, 300ULL << 20, 10, 20 };
	struct container container;
	struct writer *writer;

	assert_int_equal(writer_new(&writer, path, 300ULL << 20), 0);
	for (unsigned i = 0; i < 4; i++) {
		char name[2] = { (char)('a' + i), 0 };

		record.dims[0] = record.n_bytes = sizes[i];
		record.page_bytes = (uint32_t)(sizes[i] < 100 ? 1000 : 1 << 20);
		if (record.page_bytes == 1000)
			record.page_bytes = 1000 / (uint32_t)sizes[i] * (uint32_t)sizes[i];
		assert_int_equal(writer_tensor_begin(writer, name, 1, &record, false), 0);
		for (uint64_t p = 0; p * record.page_bytes < sizes[i]; p++)
			assert_int_equal(writer_page(writer, &page, "z"), 0);
		assert_int_equal(writer_tensor_end(writer), 0);
	}
	add_file(writer, "a.safetensors", CONTAINER_FILE_SAFETENSORS, "h", 1);
	assert_int_equal(writer_commit(writer, ""), 0);
	writer_free(writer);
	assert_int_equal(container_open(&container, path), 0);
	assert_int_equal(container.index.n_segments, 3);
	for (unsigned i = 0; i < 4; i++) {
		static const uint32_t expected[] = { 0, 1, 2, 2 };
		const struct container_form *form;

		assert_int_equal(index_form(&container.index, i, &form), 0);
		assert_int_equal(form->segment, expected[i]);
	}
	container_close(&container);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dropped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_directory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_segments, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
