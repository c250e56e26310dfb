# make install: headers, libraries, a CMake package and a pkg-config file. A build of the Python
# package (SKBUILD) installs the component `python` instead: the shared library beside the modules,
# in an editable install those of the source tree.

if(SKBUILD)
  set(python_package mdprune_deploy)
  if(SKBUILD_STATE STREQUAL "editable")
    get_filename_component(python_package ../mdprune_deploy ABSOLUTE)
  endif()
  # One file: wheels hold no links.
  set_target_properties(mdprune PROPERTIES NO_SONAME ON)
  set_property(TARGET mdprune PROPERTY VERSION)
  set_property(TARGET mdprune PROPERTY SOVERSION)
  install(TARGETS mdprune LIBRARY DESTINATION ${python_package} COMPONENT python)
  if(TARGET mdprune_cuda)
    set_target_properties(mdprune_cuda PROPERTIES NO_SONAME ON)
    set_property(TARGET mdprune_cuda PROPERTY VERSION)
    set_property(TARGET mdprune_cuda PROPERTY SOVERSION)
    install(TARGETS mdprune_cuda LIBRARY DESTINATION ${python_package} COMPONENT python)
  endif()
  return()
endif()

include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mdprune)
install(TARGETS ${libraries} EXPORT mdprune
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET mdprune_cuda)
  install(TARGETS mdprune_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(FILES include/mdprune.h include/mdprune.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT mdprune NAMESPACE mdprune:: FILE mdprune-targets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/mdprune-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/mdprune-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/mdprune-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mdprune-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/mdprune-config-version.cmake DESTINATION ${package_dir})

configure_file(cmake/mdprune.pc.in ${CMAKE_CURRENT_BINARY_DIR}/mdprune.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mdprune.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
